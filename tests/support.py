"""What the tests share: the recorded data, the recipes it was made by, and the parity rule."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet

GOLDEN = Path(__file__).parent / "golden"

TINY = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=8)
"""A network that runs in milliseconds."""

FLOOR = 3e-6
"""Relative error that is always allowed below float64."""


@dataclass(frozen=True)
class Golden:
    """One file of recordings: float64 outputs of the authors' program, rounded to float32."""

    name: str
    arrays: Mapping[str, np.ndarray]
    meta: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose name starts with ``prefix``, without it."""
        return {k[len(prefix) :]: self[k] for k in self.arrays if k.startswith(prefix)}

    @property
    def config(self) -> MetaTasNetConfig:
        return MetaTasNetConfig.from_dict(self.meta["config"])

    def network(self, dtype: torch.dtype = torch.float32) -> MultiTasNet:
        """The recorded network, in evaluation mode."""
        state = self.under("state/") or recipe_state(self.config, self.meta["weight_seed"])
        network = MultiTasNet(self.config).eval()
        network.load_state_dict(state, strict=True)
        return network.to(dtype)

    def sources(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Sources of every stage, (b, 4, 1, T)."""
        if "sources/stage0" in self:
            found = [self[f"sources/stage{s}"] for s in range(self.config.stages_num)]
        else:
            found = recipe_sources(self.meta)
        return [s.to(dtype) for s in found]

    def mixes(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Mixtures of every stage, (b, 1, T): the float64 sums of the sources."""
        return [s.sum(1).to(dtype) for s in self.sources(torch.float64)]


@functools.cache
def golden(name: str) -> Golden:
    """A recording by its file's stem."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        meta = json.loads(str(file["meta"])) if "meta" in file.files else {}
    return Golden(name, arrays, meta)


def recipe_state(config: MetaTasNetConfig, seed: int) -> dict[str, Tensor]:
    """Weights that depend on nothing but their names and the seed, bit for bit."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in MultiTasNet(config).state_dict().items()}
    return {name: torch.from_numpy(_recipe(name, shape, seed)) for name, shape in shapes.items()}


def _recipe(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    z = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    if name.endswith("spectrogram.window"):
        value = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])
    elif name.endswith("spectrogram.mean"):
        value = -1 + 0.5 * z
    elif name.endswith("spectrogram.std"):
        value = 1 + 0.25 * np.tanh(z)
    elif name.endswith("affine_scale"):
        value = 1 + 0.1 * z
    elif name.endswith("affine_bias"):
        value = 0.1 * z
    elif ".prelu_" in name:
        value = 0.25 + 0.05 * z
    elif name.endswith(".affine.bias"):
        value = 0.3 * z
        value[: len(value) // 2] += 1
    elif "group_norm.weight" in name:
        value = 1 + 0.3 * z
    elif name.endswith(".bias"):
        value = 0.1 * z
    elif name.endswith("instrument_embedding.weight"):
        value = z
    elif name.endswith(".kernel.weight"):
        value = 0.1 * z
    else:
        value = z / math.sqrt(max(1, math.prod(shape[1:])))
    return value.astype(np.float32)


def recipe_sources(meta: Mapping[str, Any]) -> list[Tensor]:
    """Sums of six tremolo tones with noise, for every stage, (b, 4, 1, T)."""
    r = np.random.RandomState(meta["source_seed"])
    batch = meta.get("batch", 1)
    shape = (batch, 4, 6)
    f, p, a = r.uniform(60, 1800, shape), r.uniform(0, 6.28, shape), r.uniform(0.1, 1, shape)
    found = []
    for s in range(meta["config"]["stages_num"]):
        t = np.arange(meta["base_T"] * 2**s) / (8000 * 2**s)
        x = (a[..., None] * np.sin(2 * np.pi * f[..., None] * t + p[..., None])).sum(2)
        x = x * (0.6 + 0.4 * np.sin(2 * np.pi * 1.3 * t))
        x = x + 0.1 * r.standard_normal((batch, 4, len(t)))
        for item, instrument in meta.get("silent", []):
            x[item, instrument] = 0
        found.append(torch.from_numpy(x.astype(np.float32))[:, :, None])
    return found


def half_a_unit_away(values: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Float64 leaves that float32 cannot tell from ``values``: moved by at most half a unit in the last place."""
    r = torch.Generator().manual_seed(seed)

    def moved(x: Tensor) -> Tensor:
        noise = 2 * torch.rand(x.shape, generator=r, dtype=torch.float64) - 1
        return (x.detach().double() * (1 + 2.0**-24 * noise)).requires_grad_(x.requires_grad)

    return {k: moved(v) for k, v in values.items()}


def relative_error(value: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """``|a - b| / |b|`` in L2, over one tensor or several together."""
    values = [value] if isinstance(value, Tensor) else list(value)
    others = [expected] if isinstance(expected, Tensor) else list(expected)
    error = sum((a.double() - b.double()).square().sum().item() for a, b in zip(values, others, strict=True))
    return math.sqrt(error / sum(b.double().square().sum().item() for b in others))


@functools.cache
def _authors() -> Any:
    return json.loads((GOLDEN / "authors_error.json").read_text())


def allowed(case: str, precision: str, key: str, stage: int | None = None, times: float | None = None) -> float:
    """Error that the parity rule allows.

    Args:
        case: the recording's name.
        precision: ``float64``, ``float32`` or ``bfloat16``.
        key: what is compared, as ``authors_error.json`` names it.
        stage: index where that file has a list.
        times: multiple of the authors' own error; by default 3 in float32 and 1.5 in bfloat16.
    """
    if precision == "float64":
        return 1e-6
    recorded = _authors()[case][{"float32": "float32", "bfloat16": "bfloat16_autocast"}[precision]][key]
    own = recorded[stage] if stage is not None else recorded
    return max(FLOOR, own * (times or {"float32": 3.0, "bfloat16": 1.5}[precision]))


def assert_parity(what: str, value: Any, expected: Any, limit: float) -> None:
    """Fail with both the error and the limit; NaN fails."""
    error = relative_error(value, expected)
    assert error <= limit, f"{what}: relative error {error:.2e}, allowed {limit:.2e}"


def trim_memory() -> None:
    """Let the C library give freed memory back to the system: after large tensors it keeps gigabytes."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
