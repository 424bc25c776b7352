"""Check outputs by the parity rule, in the same run as the measurement.

The error is the relative L2 distance from the plain-PyTorch network in float64. The allowed error is a multiple of the
error that eager PyTorch has in the same precision on the same inputs: 3 times in float32 (10 times for the gradients of
a whole network, which are ill-conditioned), 1.5 times in tf32, bfloat16 and float16, and always at least 3e-6. In
float64 it is 1e-6. Eager itself, and everything else, must also stay below an upper limit that only a broken
computation reaches. In bfloat16 and float16 the gradients of a whole network are noise in any program; of them only the
norm is checked: not zero, not NaN, not ten times too large or too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..precision import Precision

__all__ = ["GRADIENTS", "Errors", "Outputs", "errors_of", "limit", "relative_error", "verdict"]

Outputs: TypeAlias = Mapping[str, Sequence[Tensor]]
"""Outputs of a call by name; the tensors of one name are checked together."""

Errors: TypeAlias = dict[str, float]

GRADIENTS = "gradients"
NORM = "gradient norm"

FLOOR = 3e-6
TIMES = {Precision.float32: 3.0, Precision.tf32: 1.5, Precision.bfloat16: 1.5, Precision.float16: 1.5}
UPPER = {Precision.float32: 1e-2, Precision.tf32: 0.1, Precision.bfloat16: 0.3, Precision.float16: 0.3}
NEARLY_ZERO = 0.9
"""A limit just below 1, the error of an output that is all zero."""


def relative_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ``|a - b| / |b|`` in L2 over all tensors together; infinity if numbers of tensors or shapes differ, or for
    NaN.

    If ``b`` is all zero it is ``|a|``. Computed in float64 on the device of ``a``, as the outputs of a song are large.
    """
    if len(values) != len(expected) or any(a.shape != b.shape for a, b in zip(values, expected, strict=True)):
        return math.inf
    difference = size = 0.0
    for a, b in zip(values, expected, strict=True):
        a, b = a.detach().double(), b.detach().to(a.device, torch.float64)
        difference += (a - b).square().sum().item()
        size += b.square().sum().item()
    error = math.sqrt(difference / size if size else difference) if math.isfinite(difference) else math.inf
    return error if math.isfinite(error) else math.inf


def errors_of(outputs: Outputs, expected: Outputs, precision: Precision) -> Errors:
    """Return the error of each output by name; the error of a missing output is infinite."""
    errors = {}
    for name, wanted in expected.items():
        found = outputs[name] if name in outputs else ()
        if name == GRADIENTS and precision in (Precision.bfloat16, Precision.float16):
            errors[NORM] = _norm_error(found, wanted)
        else:
            errors[name] = relative_error(found, wanted)
    return errors


def _norm_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ``1 - smaller / larger`` of the two norms: 0 if they agree, 1 if one is zero, infinity if one is not
    finite."""
    a, b = (
        math.sqrt(sum(x.detach().double().square().sum().item() for x in tensors)) for tensors in (values, expected)
    )
    if not math.isfinite(a) or not math.isfinite(b) or len(values) != len(expected):
        return math.inf
    return 1 - min(a, b) / max(a, b) if max(a, b) else 0.0


def limit(name: str, precision: Precision, eager: float, degenerate: bool = False) -> float:
    """Return the allowed error if eager's own error is ``eager``.

    A degenerate signal makes the whole network as ill-conditioned as its gradients are. So the factor is 10 in float32,
    and in lower precisions the only upper limit is the one that an output of zeros reaches.
    """
    if name == NORM:
        return NEARLY_ZERO
    if precision is Precision.float64:
        return 1e-6
    gradients = name == GRADIENTS
    times = 10.0 if (gradients or degenerate) and precision is Precision.float32 else TIMES[precision]
    upper = NEARLY_ZERO if gradients or (degenerate and precision is not Precision.float32) else UPPER[precision]
    return min(max(FLOOR, times * eager), upper)


def verdict(errors: Errors, limits: Errors) -> str | None:
    """Return None if every error is within its limit, else a sentence with the worst one."""
    beyond = {name: error / limits[name] for name, error in errors.items() if not error <= limits[name]}
    if not beyond:
        return None
    worst = max(beyond, key=lambda name: beyond[name])
    return f"parity failed: {worst} has relative error {errors[worst]:.1e}, allowed is {limits[worst]:.1e}"
