"""Every kernel compiles for every GPU we name, in every configuration that ships: no unknown spills, it fits."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

from . import compiling, network  # noqa: E402  (imports Triton)
from .local_memory import known  # noqa: E402

FRAMES = 3200
PRECISIONS = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
}
QUICK = [(1, "bfloat16", 90, name) for name in ("blocks", "in_conv", "mask tail", "masked latent")]
PER_STAGE = ("in_conv", "in_conv with dropout", "mask_output", "mask tail", "masked latent", "input statistics")
ALL = [
    (stage, precision, capability, name)
    for stage in network.STAGES
    for precision in PRECISIONS
    for capability in compiling.SHARED_MEMORY
    for name in network.uses(1, FRAMES, PRECISIONS[precision][0])
    if stage == 1 or name in PER_STAGE
]
CASES = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("stage", "precision", "capability", "name"), CASES)
def test_compiles_without_spills_and_fits(
    stage: int, precision: str, capability: int, name: str, launches: list[compiling.Launch]
) -> None:
    dtype, tf32 = PRECISIONS[precision]
    network.uses(stage, FRAMES, dtype, tf32)[name]()
    assert launches
    for launch in compiling.distinct(launches):
        usage = compiling.compile_for(launch, capability)
        where = f"{launch.kernel.__name__} for sm_{capability} in {precision}: {usage}"
        assert usage.spills <= known(launch.kernel.__name__, precision, capability), where
        assert usage.shared <= compiling.SHARED_MEMORY[capability], where


def test_no_launch_depends_on_the_length(launches: list[compiling.Launch]) -> None:

    def compiled(frames: int) -> list[str]:
        launches.clear()
        for use in network.uses(1, frames, torch.bfloat16).values():
            use()
        return [compiling.source(launch)[0].hash() for launch in launches]

    assert compiled(3200) == compiled(3201) == compiled(1)


def test_more_than_two_to_the_31_elements_fit_the_grid_and_change_no_program(launches: list[compiling.Launch]) -> None:
    found = []
    # 2 items, 4 instruments, 160 channels or more: 2^32 elements. Twice as many frames (an item of six hours) have strides that
    # need 64 bits even in units of eight elements: those are compiled once more.
    for frames in (3200, 2**22):
        launches.clear()
        for use in network.uses(1, frames, torch.bfloat16).values():
            use()
        assert all(launch.programs < 2**31 for launch in launches)
        found.append([compiling.source(launch)[0].hash() for launch in launches])
    assert found[0] == found[1]
