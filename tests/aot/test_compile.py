"""Every kernel compiles for every GPU we name, in every configuration that ships: no unknown spills, it fits."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

from metatasnet_fast import ops  # noqa: E402
from metatasnet_fast.kernels.launch import LITTLE  # noqa: E402
from metatasnet_fast.kernels.recording import Recorder  # noqa: E402

from . import codec, compiling, network  # noqa: E402  (imports Triton)
from .local_memory import known  # noqa: E402

FRAMES = 3200
PRECISIONS = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
}
IN_EVERY_PRECISION = ("sm_80", "sm_90", "sm_100")
WITH_TF32 = ("sm_86", "sm_89", "sm_120", "gfx942")
PER_STAGE = ("in_conv", "in_conv with dropout", "mask_output", "mask tail", "masked latent", "input statistics")


def uses(stage: int, precision: str, frames: int = FRAMES) -> dict[str, Callable[[], None]]:
    """Return what a stage launches, by the layer's name; stages count from 1.

    Layers that do not depend on the stage, or on the precision, are in the first stage, or in bfloat16, only.
    """
    dtype, tf32 = PRECISIONS[precision]
    masking = network.uses(stage, frames, dtype, tf32)
    coding = codec.uses(stage, frames, dtype, tf32)
    return {
        **{name: use for name, use in masking.items() if stage == 1 or name in PER_STAGE},
        **{name: use for name, use in coding.items() if precision == "bfloat16" or name != "log power"},
    }


def precisions(target: str) -> list[str]:
    if target in IN_EVERY_PRECISION:
        return list(PRECISIONS)
    return ["bfloat16", "float32", *(["tf32"] if target in WITH_TF32 else [])]


QUICK = [
    *((1, "bfloat16", "sm_90", name) for name in ("blocks", "in_conv", "mask tail", "masked latent")),
    *((1, "bfloat16", "sm_90", name) for name in ("bottleneck 1", "overlap-add", "losses")),
    (1, "bfloat16", "sm_89", "mask_output"),
]  # fmt: skip
ALL = [
    (stage, precision, target, name)
    for target in compiling.TARGETS
    for precision in precisions(target)
    for stage in network.STAGES
    for name in uses(stage, precision)
    if name != "masked latent" or compiling.TARGETS[target].shared > LITTLE  # others take mask_output and the mask tail
]
CASES = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("stage", "precision", "target", "name"), CASES)
def test_compiles_without_spills_and_fits(
    stage: int, precision: str, target: str, name: str, launches: list[compiling.Launch]
) -> None:
    """AMD's compiler may spill: nothing was chosen for its GPUs."""
    uses(stage, precision)[name]()
    assert launches
    gpu = compiling.TARGETS[target]
    for launch in compiling.distinct(launches):
        usage = compiling.compile_for(launch, gpu)
        where = f"{launch.kernel.__name__} for {target} in {precision}: {usage}"
        assert usage.shared <= gpu.shared, where
        if gpu.capability:
            assert usage.spills <= known(launch.kernel.__name__, precision, gpu.capability), where


@pytest.mark.parametrize(("target", "stored"), [("sm_89", True), ("gfx942", True), ("sm_90", False), ("gfx950", False)])
def test_masks_go_by_way_of_memory_where_shared_memory_is_too_small(target: str, stored: bool) -> None:
    x, latent, one, weight = (network.empty(*n) for n in ((1, 4, 300, 160), (1, 300, 40), (1,), (4, 40, 160)))
    norm = ops.GroupNorm(network.empty(1, 4, 3, 2, 160), network.empty(4, 160), network.empty(4, 160))
    beta = network.empty(4, 40)
    gpu = compiling.TARGETS[target]
    with Recorder(gpu.capability, "" if gpu.capability else target) as recorder:
        ops.masked_latent(x.bfloat16(), weight, norm, one, beta, beta, latent.bfloat16(), 4)
    names = {launch.name for launch in recorder.found}
    assert ("mask_tail_fwd" in names) == stored and ("masked_latent" in names) != stored


def hashes(launches: list[compiling.Launch], found: dict[str, Callable[[], None]]) -> list[str]:
    launches.clear()
    for use in found.values():
        use()
    return [compiling.source(launch)[0].hash() for launch in launches]


def test_no_launch_depends_on_the_length(launches: list[compiling.Launch]) -> None:
    found = [hashes(launches, network.uses(1, frames, torch.bfloat16)) for frames in (3200, 3201, 1)]
    assert found[0] == found[1] == found[2]
    found = [hashes(launches, codec.uses(1, frames, torch.bfloat16)) for frames in (3200, 3202, 26)]
    assert found[0] == found[1] == found[2]


def test_more_than_two_to_the_31_elements_fit_the_grid_and_change_no_program(launches: list[compiling.Launch]) -> None:
    found = []
    # 2 items, 4 instruments, 440 channels or more: 2^31 elements and more. With half as many frames again (an item of an hour)
    # the b of all blocks has strides that need 64 bits even in units of eight elements: those are compiled once more.
    for frames in (3200, 2**20):
        found.append(hashes(launches, network.uses(1, frames, torch.bfloat16)))
        assert all(launch.programs < 2**31 for launch in launches)
    assert found[0] == found[1]
