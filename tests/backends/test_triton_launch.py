"""A launch that Triton has seen before starts the program that Triton would start; with a driver that has no device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from metatasnet_fast.kernels import launch, recording, statistics  # noqa: E402
from metatasnet_fast.ops.operator import interpreted  # noqa: E402

pytestmark = pytest.mark.skipif(interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled")

STARTED: list[tuple[Any, ...]] = []


class Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 1, id(kernel), 32, 0, 1024


class Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        grid, program, values = arguments[:3], arguments[4], arguments[9:]
        STARTED.append((grid, program, values))


class Driver(DriverBase):  # type: ignore[misc]
    utils = Utils()
    launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "_programs", {})
    driver.set_active(Driver())
    STARTED.clear()
    statistics.statistics_kernel.device_caches.clear()
    yield
    statistics.statistics_kernel.device_caches.clear()
    if torch.cuda.is_available():  # without a GPU there is no driver to go back to
        driver.reset_active()


def start(x: torch.Tensor, slope: torch.Tensor | None) -> tuple[Any, ...]:
    statistics.group_statistics(x, slope)
    return STARTED.pop()


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Equal grids and programs, tensors of equal shapes, other values equal."""
    pairs = zip(one[2], other[2], strict=True)
    equal = all(a.shape == b.shape if isinstance(a, torch.Tensor) else a == b and type(a) is type(b) for a, b in pairs)
    return one[:2] == other[:2] and equal


@pytest.mark.parametrize("slope", [True, False])
def test_the_second_launch_is_the_first_one_again(slope: bool) -> None:
    x = torch.empty(2, 3, 130, 40, dtype=torch.bfloat16, device="meta")
    p = torch.empty(1, device="meta") if slope else None
    assert same(start(x, p), start(x, p))


def test_what_triton_compiles_anew_is_another_program() -> None:
    x = torch.empty(2, 3, 130, 40, dtype=torch.bfloat16, device="meta")
    one = torch.empty(1, device="meta")
    layouts = {
        "as it is": (x, one),
        "longer": (x[:, :, :77], one),
        "other channels": (x[..., :32], one),
        "strides that are no multiples of eight": (x.new_empty(2, 3, 130, 41)[..., :40], one),
        "float32": (x.float(), one),
        "no slope": (x, None),
    }
    found = {name: start(*arguments) for name, arguments in layouts.items()}
    again = {name: start(*arguments) for name, arguments in layouts.items()}
    assert all(same(found[name], again[name]) for name in layouts)
    assert found["longer"][1] == found["as it is"][1]
    assert len({program for _, program, _ in found.values()}) == len(layouts) - 1


@pytest.mark.parametrize("slope", [True, False])
def test_a_launch_finds_what_was_compiled_ahead(slope: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, p = torch.empty(2, 3, 130, 40, dtype=torch.bfloat16, device="meta"), torch.empty(1, device="meta")
    with recording.recorded(recording.compile_ahead, 90):
        statistics.group_statistics(x, p if slope else None)
    ahead = sorted(path.name for path in tmp_path.rglob("*.cubin"))
    statistics.statistics_kernel.device_caches.clear()
    start(x, p if slope else None)
    assert len(ahead) == len(list(tmp_path.iterdir())) > 0
    assert sorted(path.name for path in tmp_path.rglob("*.cubin")) == ahead
