"""The weights of the backend ``cpu``: a stage's float32 arrays for the compiled module, and the folded spectrogram branch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import reference
from ..config import StageConfig
from ..reference import StageWeights
from ..reference.generator import EncoderWeights
from ..reference.network import FLOOR
from .cpu_training import Expand

__all__ = ["MelShare", "arrays", "generate", "sizes", "weight_tensors"]

_FRAMES = 256
"""Number of STFT frames that are processed at a time. Their data stay in the caches."""


def sizes(config: StageConfig) -> dict[str, Any]:
    """Return the sizes that ``CpuStage`` needs."""
    return {
        "instruments": config.instruments,
        "softmax": config.softmax,
        "N": config.N,
        "W": config.W,
        "B": config.B,
        "H": config.H,
        "partial": config.partial_channels,
        "kernel_sizes": list(config.kernel_sizes),
        "widths": list(config.decoder_widths),
        "dilations": list(config.dilations),
    }


def generate(config: StageConfig, p: Mapping[str, Tensor], module: Any, isa: str) -> StageWeights:
    """Return what ``reference.generate`` returns. Compiled code computes all generated layers at once.

    The results of the generated layers are then passed to the reference as the parameters of a stage without generated layers.
    ``p`` holds the stage's parameters by the original's names, in float32.
    """
    if not config.generated:
        return reference.generate(config, p)
    unused = f"mask.tcn.{len(config.dilations) - 1}.res_out"
    suffix = ".bottleneck.weight"
    layers = [name[: -len(suffix)] for name in p if name.startswith("mask.") and name.endswith(suffix)]
    layers = [name for name in layers if name != unused]
    parts = [(name, part) for name in layers for part in _PARTS if f"{name}.{part}.weight" in p]
    inner = torch.stack([p[f"{name}{suffix}"] for name in layers])
    hidden = inner @ p["instrument_embedding.weight"].T + torch.stack(
        [p[f"{name}.bottleneck.bias"] for name in layers]
    ).unsqueeze(-1)
    place = {name: number for number, name in enumerate(layers)}
    found: Sequence[Tensor] = Expand.apply(  # type: ignore[no-untyped-call]
        module,
        isa,
        hidden[[place[name] for name, _ in parts]],
        *(p[f"{name}.{part}.weight"].contiguous() for name, part in parts),
        *(p[f"{name}.{part}.bias"].contiguous() for name, part in parts),
    )
    stored = dict(p)
    for (name, part), value in zip(parts, found, strict=True):
        if part == "affine":
            stored[f"{name}.group_norm.weight"], stored[f"{name}.group_norm.bias"] = value.chunk(2, dim=1)
        else:
            stored[f"{name}.conv.{'weight' if part == 'kernel' else 'bias'}"] = value
    weights = reference.generate(dataclasses.replace(config, generated=False), stored)
    return dataclasses.replace(weights, config=config)


_PARTS = ("kernel", "bias", "affine")
"""The kinds of parameters that a generated layer makes from its hidden values."""


def weight_tensors(weights: StageWeights) -> dict[str, Tensor]:
    """Return the weights under the names and in the layouts of ``csrc/cpu/tensors.h``.

    The spectrogram branch is left out; see :class:`MelShare`. The result is differentiable: each tensor is a view or a copy of
    the stage's weights.
    """
    return _encoder(weights) | _decoder(weights) | _masking(weights)


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors as contiguous NumPy arrays, for the compiled module."""
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}


def _centred(filters: Iterable[Tensor], longest: int) -> Tensor:
    """Return filters (width_l, 1, k_l) stacked into (sum of widths, longest); shorter filters get zeros on both sides."""
    return torch.cat([F.pad(f[:, 0], ((longest - f.shape[-1]) // 2,) * 2) for f in filters])


def _encoder(weights: StageWeights) -> dict[str, Tensor]:
    config, encoder = weights.config, weights.encoder
    filters, width = len(config.kernel_sizes), config.encoder_width
    # The compiled filter bank stores its outputs filter by filter: reorder the columns of bottleneck_1 accordingly.
    columns = encoder.bottleneck_1.squeeze(-1)[:, : filters * width].unflatten(1, (width, filters))
    return {
        "encoder.bank": _centred(encoder.filters, config.kernel_sizes[-1]),
        "encoder.bottleneck_1": columns.transpose(1, 2).flatten(1),
        "encoder.bottleneck_2": encoder.bottleneck_2.squeeze(-1),
    }


def _decoder(weights: StageWeights) -> dict[str, Tensor]:
    """Return the decoder's weights. The channels of the longest filter come first."""
    config, decoder = weights.config, weights.decoder
    columns = decoder.bottleneck.squeeze(-1).split(config.decoder_widths, dim=1)
    return {
        "decoder.bottleneck": torch.cat(columns[::-1], dim=1),
        "decoder.filters": _centred(decoder.filters[::-1], config.kernel_sizes[-1]),
    }


def _masking(weights: StageWeights) -> dict[str, Tensor]:
    masking = weights.masking
    named = {
        "mask.prelu_1": masking.prelu_1,
        "mask.prelu_2": masking.prelu_2,
        "mask.prelu_3": masking.prelu_3,
        "mask.prelu_4": masking.prelu_4,
        "mask.in_conv": masking.in_conv.weight.squeeze(-1),
        "mask.mask_output": masking.mask_output.weight.squeeze(-1),
    }
    norms = {f"mask.norm_{i}": getattr(masking, f"norm_{i}") for i in (1, 2, 3, 4)}
    for i, block in enumerate(masking.blocks):
        name = f"mask.blocks.{i}"
        named[f"{name}.prelu_1"] = block.prelu_1
        named[f"{name}.prelu_2"] = block.prelu_2
        named[f"{name}.conv1d"] = block.conv1d.weight.squeeze(-1)
        named[f"{name}.dconv1d"] = block.dconv1d.weight.squeeze(2)
        norms[f"{name}.norm_1"] = block.norm_1
        norms[f"{name}.norm_2"] = block.norm_2
        for output, convolution in (("res_out", block.res_out), ("skip_out", block.skip_out)):
            if convolution is None:
                continue
            named[f"{name}.{output}"] = convolution.weight.squeeze(-1)
            if convolution.bias is not None:
                named[f"{name}.{output}.bias"] = convolution.bias
    for name, norm in norms.items():
        named[f"{name}.scale"] = norm.scale
        named[f"{name}.shift"] = norm.shift
    return named


@dataclasses.dataclass(frozen=True)
class MelShare:
    """The spectrogram branch's share of the bottleneck: ``(log10(|STFT|^2 + floor) - mean) @ to_mel @ to_latent + bias``.

    From the logarithm to the bottleneck's ReLU the branch is linear. As interpolation weights sum to one, the branch may be
    computed before the interpolation along time: at 31.25 frames a second instead of 400, which is 1 % of the network's
    arithmetic. The pass that adds the share interpolates it.

    ``mean`` is subtracted in float32 right after the logarithm. Only ``1 / std`` and the affine scale are folded into
    ``to_mel``: if the mean were subtracted later, a tiny ``std`` would amplify the rounding error.
    """

    window: Tensor
    """(n_fft,)"""
    mean: Tensor
    """(bins,)"""
    to_mel: Tensor
    """(bins, mels), float64"""
    to_latent: Tensor
    """(mels, channels), float64: the encoder's first bottleneck for the mel bands, with zeros up to ``channels`` outputs."""
    bias: Tensor
    """(channels,), float64"""
    hop: int

    @classmethod
    def of(cls, weights: EncoderWeights, config: StageConfig, channels: int) -> MelShare | None:
        """Return the share of an encoder, its maps folded in float64; None for a network without the spectrogram branch."""
        s = weights.spectrogram
        if s is None:
            return None
        mel = s.mel_weight[:, :, 0].double()
        scale, std, shift = (x.double().flatten() for x in (s.scale, s.std, s.bias))
        bottleneck = weights.bottleneck_1[:, -config.num_mels :, 0].double()
        to_latent = mel.new_zeros(config.num_mels, channels)
        to_latent[:, : config.N] = bottleneck.T
        bias = (mel @ shift + s.mel_bias.double()) @ to_latent
        return cls(
            window=s.window.float().clone(),
            mean=s.mean.float().flatten().clone(),
            to_mel=(mel * (scale / std)).T.contiguous(),
            to_latent=to_latent,
            bias=bias,
            hop=config.hop,
        )

    def __call__(self, signals: Tensor) -> Tensor:
        """Return the share (n, STFT frames, channels) of signals (n, samples), both float32.

        Without gradients, the frames are processed in pieces, to limit the memory.
        """
        windows = self._windows(signals)
        if torch.is_grad_enabled():
            return self._share(windows)
        share = signals.new_empty(*windows.shape[:2], self.to_latent.shape[1])
        for some, out in zip(windows.split(_FRAMES, 1), share.split(_FRAMES, 1), strict=True):
            for one, to in zip(some, out, strict=True):
                to.copy_(self._share(one))
        return share

    def _windows(self, signals: Tensor) -> Tensor:
        """Return overlapping views of the padded signals, (n, STFT frames, n_fft)."""
        reach = len(self.window) // 2
        if not len(signals):
            return signals.new_empty(0, signals.shape[-1] // self.hop + 1, len(self.window))
        return F.pad(signals[:, None], (reach, reach), mode="reflect")[:, 0].unfold(1, len(self.window), self.hop)

    def _share(self, windows: Tensor) -> Tensor:
        # For silence, thousands of equal terms cancel in this sum; in float32 too large an error would remain. Besides, MKL's
        # float32 products of 5 to 11 rows change their last bits with the number of threads.
        return (self._normalised(windows).double() @ self.to_mel @ self.to_latent + self.bias).float()

    def _normalised(self, windows: Tensor) -> Tensor:
        if not len(windows):  # the FFT rejects an empty batch
            return windows.new_empty(*windows.shape[:-1], len(self.mean))
        power = torch.view_as_real(torch.fft.rfft(windows * self.window)).square().sum(-1)
        return torch.log10(power + FLOOR) - self.mean
