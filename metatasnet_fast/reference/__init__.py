"""The plain-PyTorch forward of every operation: short, readable, the oracle of every test."""

from .decoder import decode
from .encoder import encode
from .generator import generate
from .losses import si_sdr, stage_loss
from .masking import mask, masking_network
from .weights import StageWeights

__all__ = ["StageWeights", "decode", "encode", "generate", "mask", "masking_network", "si_sdr", "stage_loss"]
