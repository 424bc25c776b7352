"""The precisions a computation can be asked for."""

from __future__ import annotations

import enum

import torch

from .errors import ConfigError

__all__ = ["Precision"]


class Precision(str, enum.Enum):
    """Precision of the arithmetic; parameters, inputs and outputs keep their own dtype.

    ``tf32`` is float32 storage with TF32 tensor-core products. Statistics, accumulators, the softmax and the logarithm of
    the spectrogram are float32 or wider in every precision.
    """

    float64 = "float64"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def storage(self) -> torch.dtype:
        """The dtype in which activations are stored."""
        return torch.float32 if self is Precision.tf32 else getattr(torch, self.value)

    @classmethod
    def parse(cls, value: str | torch.dtype | Precision) -> Precision:
        """From a name or a torch dtype; raises :class:`ConfigError` for anything else."""
        name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"Unknown dtype {value!r}; choose one of {', '.join(p.value for p in cls)}.") from None

    @classmethod
    def default(cls, device: torch.device) -> Precision:
        """What ``dtype="auto"`` means: float32 on a CPU, bfloat16 on a GPU."""
        return cls.float32 if device.type == "cpu" else cls.bfloat16
