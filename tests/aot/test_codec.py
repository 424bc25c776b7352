"""The codec's and the losses' kernels compile for every GPU we name, in every configuration: no unknown spills, they fit."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)


from . import codec, compiling  # noqa: E402
from .local_memory import known  # noqa: E402
from .test_compile import FRAMES, PRECISIONS  # noqa: E402

QUICK = [(1, "bfloat16", 90, name) for name in ("bottleneck 1", "overlap-add", "losses")]
ALL = [
    (stage, precision, capability, name)
    for stage in (1, 2, 3)
    for precision in PRECISIONS
    for capability in compiling.SHARED_MEMORY
    for name in codec.uses(1, FRAMES, torch.float32)
    if precision == "bfloat16" or name != "log power"  # it is float32 in every precision
]
CASES = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("stage", "precision", "capability", "name"), CASES)
def test_compiles_without_spills_and_fits(
    stage: int, precision: str, capability: int, name: str, launches: list[compiling.Launch]
) -> None:
    dtype, tf32 = PRECISIONS[precision]
    codec.uses(stage, FRAMES, dtype, tf32)[name]()
    assert launches
    for launch in compiling.distinct(launches):
        usage = compiling.compile_for(launch, capability)
        where = f"{launch.kernel.__name__} for sm_{capability} in {precision}: {usage}"
        assert usage.spills <= known(launch.kernel.__name__, precision, capability), where
        assert usage.shared <= compiling.SHARED_MEMORY[capability], where


def test_no_launch_depends_on_the_length(launches: list[compiling.Launch]) -> None:
    def compiled(frames: int) -> list[str]:
        launches.clear()
        for use in codec.uses(1, frames, torch.bfloat16).values():
            use()
        return [compiling.source(launch)[0].hash() for launch in launches]

    assert compiled(3200) == compiled(3202) == compiled(26)
