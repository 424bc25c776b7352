"""The oracle: the network as in the paper, in plain PyTorch, channels first, with autograd, in any dtype."""

from .generator import StageWeights, generate
from .losses import LossWeights, loss_divisors, si_sdr, stage_loss
from .network import decode, encode, mask, masking_network

__all__ = [
    "LossWeights",
    "StageWeights",
    "loss_divisors",
    "decode",
    "encode",
    "generate",
    "mask",
    "masking_network",
    "si_sdr",
    "stage_loss",
]
