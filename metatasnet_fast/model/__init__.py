"""Build, load, save, export and accelerate the network. Its parameters have the original's names."""

from .accelerate import AccelerationReport, accelerate, restore
from .network import MultiTasNet
from .pretrained import bundled_models, convert, default_model, load_checkpoint
from .programs import export

__all__ = [
    "AccelerationReport", "MultiTasNet", "accelerate", "bundled_models", "convert", "default_model", "export",
    "load_checkpoint", "restore",
]  # fmt: skip
