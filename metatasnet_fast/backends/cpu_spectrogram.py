"""The spectrogram branch up to the first bottleneck, at the STFT's frame rate.

After the logarithm everything up to the bottleneck's ReLU is linear, and interpolation along time commutes with it (its weights
sum to one), so the branch is evaluated at 31.25 frames a second instead of 400 and its result is interpolated by whoever adds
it: 1 % of the network's arithmetic.
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
        """(n, samples) float32 to (n, STFT frames, channels); without gradients one item at a time, which bounds the memory."""
        if torch.is_grad_enabled():
            return self._share(signals)
        frames = signals.shape[-1] // self.hop + 1
        share = signals.new_empty(len(signals), frames, self.to_latent.shape[1])
        for signal, out in zip(signals, share, strict=True):
            out.copy_(self._share(signal[None])[0])
        return share

    def _share(self, signals: Tensor) -> Tensor:
        # On silence thousands of equal terms cancel in this sum: in float32 they would leave more than their rounding.
        # And MKL's float32 products of 5 to 11 rows have other bits with another number of threads.
        return (self._normalised(signals).double() @ self.to_mel @ self.to_latent + self.bias).float()

    def _normalised(self, signals: Tensor) -> Tensor:
        if not len(signals):  # the FFT takes no empty batch
            return signals.new_empty(0, signals.shape[-1] // self.hop + 1, len(self.mean))
        reach = len(self.window) // 2
        padded = F.pad(signals[:, None], (reach, reach), mode="reflect")[:, 0]
        spectrum = torch.fft.rfft(padded.unfold(1, len(self.window), self.hop) * self.window)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return torch.log10(power + FLOOR) - self.mean
