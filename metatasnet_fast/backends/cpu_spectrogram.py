"""The spectrogram branch up to the first bottleneck, at the STFT's frame rate.

After the logarithm everything up to the bottleneck's ReLU is linear, and interpolation along time commutes with it (its weights
sum to one), so the branch is computed at 31.25 frames a second instead of 400: 1 % of the network's arithmetic. The pass
that adds the result interpolates it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from ..reference.spectrogram import FLOOR
from ..reference.weights import EncoderWeights

__all__ = ["MelShare"]

_FRAMES = 256
"""STFT frames at a time: what they need stays in the caches."""


@dataclass(frozen=True)
class MelShare:
    """``(log10(|STFT|^2 + floor) - mean) @ to_mel @ to_latent + bias``.

    ``mean`` is subtracted in float32 right after the logarithm; only ``1 / std`` and the affine scale are folded into
    ``to_mel``, because a tiny ``std`` would amplify the rounding of anything subtracted later.
    """

    window: Tensor
    """(n_fft,)"""
    mean: Tensor
    """(bins,)"""
    to_mel: Tensor
    """(bins, mels), float64"""
    to_latent: Tensor
    """(mels, channels), float64: the mel inputs of the encoder's first bottleneck, zero-padded to ``channels`` outputs."""
    bias: Tensor
    """(channels,), float64"""
    hop: int

    @classmethod
    def of(cls, weights: EncoderWeights, config: StageConfig, channels: int) -> MelShare | None:
        """Fold in float64; what the products read stays so. None for a network without the branch."""
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
        """(n, samples) float32 to (n, STFT frames, channels); without gradients some frames at a time, to bound the memory."""
        windows = self._windows(signals)
        if torch.is_grad_enabled():
            return self._share(windows)
        share = signals.new_empty(*windows.shape[:2], self.to_latent.shape[1])
        for some, out in zip(windows.split(_FRAMES, 1), share.split(_FRAMES, 1), strict=True):
            for one, to in zip(some, out, strict=True):
                to.copy_(self._share(one))
        return share

    def _windows(self, signals: Tensor) -> Tensor:
        """(n, STFT frames, n_fft): overlapping views of the padded signals."""
        reach = len(self.window) // 2
        if not len(signals):
            return signals.new_empty(0, signals.shape[-1] // self.hop + 1, len(self.window))
        return F.pad(signals[:, None], (reach, reach), mode="reflect")[:, 0].unfold(1, len(self.window), self.hop)

    def _share(self, windows: Tensor) -> Tensor:
        # On silence thousands of equal terms cancel in this sum: in float32 they would leave more than their rounding.
        # And MKL's float32 products of 5 to 11 rows have other bits with another number of threads.
        return (self._normalised(windows).double() @ self.to_mel @ self.to_latent + self.bias).float()

    def _normalised(self, windows: Tensor) -> Tensor:
        if not len(windows):  # the FFT takes no empty batch
            return windows.new_empty(*windows.shape[:-1], len(self.mean))
        power = torch.view_as_real(torch.fft.rfft(windows * self.window)).square().sum(-1)
        return torch.log10(power + FLOOR) - self.mean
