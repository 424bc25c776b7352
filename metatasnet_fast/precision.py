"""The precisions in which the network can be computed."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from typing import Any

import torch

from .errors import ConfigError

__all__ = ["Precision", "tf32_products"]


class Precision(str, enum.Enum):
    """The precision of the arithmetic. Parameters, inputs and outputs keep their own dtype.

    ``tf32`` stores float32 and computes products in TF32 on tensor cores. Statistics, accumulators, the softmax and the
    logarithm of the spectrogram are float32 or wider in every precision.
    """

    float64 = "float64"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def storage(self) -> torch.dtype:
        """Return the dtype in which activations are stored."""
        return torch.float32 if self is Precision.tf32 else getattr(torch, self.value)

    @classmethod
    def parse(cls, value: str | torch.dtype | Precision) -> Precision:
        """Return the precision for a name (such as ``bf16``) or a torch dtype; raise :class:`ConfigError` for others."""
        name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        name = SHORT.get(name, name) if isinstance(name, str) else name
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"Unknown dtype {value!r}; choose one of {', '.join(p.value for p in cls)}.") from None

    @classmethod
    def default(cls, device: torch.device) -> Precision:
        """Return the precision of ``dtype="auto"``: float32 on a CPU, bfloat16 on a GPU."""
        return cls.float32 if device.type == "cpu" else cls.bfloat16

    def on(self, device: torch.device) -> Precision:
        """Return the precision to use on a device: tf32 instead of float32 on a GPU, if torch's switch for products allows it.

        The switch is ``torch.set_float32_matmul_precision`` or ``torch.backends.cuda.matmul``. torch's switch for convolutions
        is not followed, as it is on by default: float32 stays float32 unless the user allows less.
        """
        if self is Precision.float32 and device.type == "cuda" and _products_in_tf32():
            return Precision.tf32
        return self


SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Other names of the precisions, as in other libraries."""


@contextlib.contextmanager
def tf32_products(allow: bool) -> Iterator[None]:
    """In this context, allow or forbid TF32 in torch's products and convolutions on GPUs."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later
        cudnn: Any = torch.backends.cudnn
        switches, name = (torch.backends.cuda.matmul, cudnn.conv), "fp32_precision"
        setting: object = "tf32" if allow else "ieee"
    else:
        switches, name, setting = (torch.backends.cuda.matmul, torch.backends.cudnn), "allow_tf32", allow
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, setting)
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            setattr(switch, name, was)


def _products_in_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"
