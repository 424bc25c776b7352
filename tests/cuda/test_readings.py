"""What ptxas said of the kernels when the module in this tree was built: nothing spills, two blocks of products fit."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metatasnet_fast.backends.cuda import KERNELS

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / f"native-{sys.implementation.cache_tag}" / "CMakeFiles" / "metatasnet_cuda.dir"
REGISTERS = 65536
"""Of a multiprocessor, on every GPU from sm_80 on."""


@dataclass(frozen=True)
class Reading:
    kernel: str
    arithmetic: str
    architecture: str
    spilled: int
    registers: int
    shared: int


def parse(text: str) -> list[Reading]:
    """Readings of ``ptxas -v``, one for each kernel and architecture."""
    pattern = (
        r"Compiling entry function '(\S+)' for '(sm_\w+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    found = []
    for name, architecture, stores, loads, registers, rest in re.findall(pattern, text, re.DOTALL):
        kernel = next(k for k in sorted(KERNELS, key=len, reverse=True) if f"{len(k)}{k}" in name)
        arithmetic = next((a for a in ("InFloat32", "InSplitTf32", "InTf32", "InBfloat16") if a in name), "")
        shared = re.search(r"(\d+) bytes smem", rest)
        size = int(shared[1]) if shared else 0
        found.append(Reading(kernel, arithmetic, architecture, int(stores) + int(loads), int(registers), size))
    return found


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    # An incremental build leaves the readings of sources that are gone.
    sources = [path.relative_to(ROOT) for path in (ROOT / "csrc" / "cuda").glob("*.cu")]
    files = [file for source in sources if (file := BUILT / f"{source}.o.ptxas.txt").exists()]
    if not files:
        pytest.skip("the CUDA kernels were not compiled in this tree")
    return [reading for file in files for reading in parse(file.read_text(encoding="utf-8"))]


def test_every_kernel_was_compiled_for_every_architecture(readings: list[Reading]) -> None:
    architectures = {reading.architecture for reading in readings}
    assert architectures >= {"sm_80", "sm_90a"}
    for architecture in architectures:
        assert {r.kernel for r in readings if r.architecture == architecture} == set(KERNELS)


def test_nothing_spills(readings: list[Reading]) -> None:
    assert [r for r in readings if r.spilled] == []


def test_two_blocks_of_256_threads_fit_with_tensor_core_products(readings: list[Reading]) -> None:
    products = [r for r in readings if r.kernel in ("Pointwise", "Mix", "MixConv") and r.arithmetic != "InFloat32"]
    assert products and all(2 * 256 * r.registers <= REGISTERS for r in products)


def test_two_blocks_of_128_threads_fit_with_wgmma(readings: list[Reading]) -> None:
    products = [r for r in readings if r.kernel == "PointwiseWgmma"]
    assert products and all(2 * 128 * r.registers <= REGISTERS for r in products)
    assert all(r.registers > 160 for r in products if r.architecture == "sm_90a")  # the sums; elsewhere it is a trap


def test_three_warpgroups_of_a_persistent_launch_fit(readings: list[Reading]) -> None:
    """With the residual stream and the sums of half a conv1d in registers, on the one architecture that has wgmma."""
    found = [r for r in readings if r.kernel == "PersistentBlocks"]
    assert found and all(3 * 128 * r.registers <= REGISTERS for r in found)
    assert all(r.registers > 80 + 40 for r in found if r.architecture == "sm_90a")


def test_no_product_by_wgmma_is_serialised() -> None:
    """ptxas says so where it waits for each product, because registers or branches leave it no choice."""
    file = BUILT / "csrc/cuda/products_wgmma.cu.o.ptxas.txt"
    if not file.exists():
        pytest.skip("the CUDA kernels were not compiled in this tree")
    assert "serialized" not in file.read_text(encoding="utf-8")


def test_memory_bound_passes_leave_room_for_four_blocks_of_128_threads(readings: list[Reading]) -> None:
    passes = [r for r in readings if r.kernel in ("Depthwise", "SourceMoments")]
    assert passes and all(4 * 128 * r.registers <= REGISTERS for r in passes)


def test_making_norms_costs_other_passes_no_occupancy(readings: list[Reading]) -> None:
    """Blocks of 128 threads (Norm: 256) that fit on a multiprocessor, with the norm that the last of them makes."""
    blocks = {"SourceMoments": 6, "Depthwise": 4, "Norm": 3}
    threads = {"SourceMoments": 128, "Depthwise": 128, "Norm": 256}
    found = [r for r in readings if r.kernel in blocks]
    assert {r.kernel for r in found} == set(blocks)
    assert [r for r in found if blocks[r.kernel] * threads[r.kernel] * r.registers > REGISTERS] == []


def test_shared_memory_is_asked_for_at_launch_only(readings: list[Reading]) -> None:
    """Its size is planned and checked by csrc/cuda/stage.cu; a static array would come on top."""
    assert all(r.shared == 0 for r in readings)


def test_a_spill_would_be_read() -> None:
    text = (
        "ptxas info    : Compiling entry function '_ZN10metatasnet4cuda6kernelINS0_3MixINS0_10InBfloat16EEEEEvNT_4ArgsE'"
        " for 'sm_80'\nptxas info    : Function properties for x\n"
        "    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 1 barriers, 256 bytes smem, 640 bytes cmem[0]\n"
    )
    assert parse(text) == [Reading("Mix", "InBfloat16", "sm_80", 20, 128, 256)]
