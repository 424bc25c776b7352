"""The encoder's filters as one bank over one frame, and the weight gradient of any product with overlapping frames.

    y[n, t, o] = act( sum_k bank[o, k] signal[n, t stride + k - padding] ), zero outside the signal
    dbank[o, k] = sum_nt dy[n, t, o] signal[n, t stride + k - padding], dy in front of the ReLU
    dsignal: the overlap-add of dy (see `overlap_add`)

The three widths k_l = L 2^l share stride and centre, so each is the longest one with zeros at both ends: one product
of an overlapping-stride view of the signal, which is never written out, with bank (3 N / 4, 4 L). Rows of the bank are
interleaved as the original interleaves its channels.

Bytes: y once, n T (3 N / 4) sizeof(dtype); the signal is 1 / 16 of that and stays in L1. FLOPs: 2 n T (3 N / 4) 4 L, of
which 5 / 12 meet the zeros: at stage 1 26.4 of the encoder's 365 kMAC a frame, so splitting them is not worth a kernel.
Memory-bound in stage 1 (53 FLOP a byte), balanced in stage 3. Idle columns: see `bottleneck`; K = 80, 160, 320 in
blocks of 32: 17 % idle, none, none. Frames start at multiples of 4, 8, 16 bytes (stride 20, 40, 80), loads are as wide.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/encoder.py (filters).
"""

from __future__ import annotations

from torch import Tensor

from .bottleneck import Framing, product
from .bottleneck_backward import weight_gradient

__all__ = ["filter_bank_forward", "filter_bank_weight_gradient"]


def filter_bank_forward(signal: Tensor, bank: Tensor, framing: Framing, relu: bool, precision: str) -> Tensor:
    """y (n, frames, rows of the bank); ``signal`` (n, samples) and ``bank`` (rows, taps) of one dtype."""
    return product(signal, bank, precision, relu=relu, framing=framing)


def filter_bank_weight_gradient(dy: Tensor, signal: Tensor, taps: int, framing: Framing, precision: str) -> Tensor:
    """dbank (rows, taps), float32; ``dy`` in front of the ReLU."""
    return weight_gradient(dy, signal, taps, precision, framing=framing)[0]
