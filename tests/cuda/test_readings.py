"""What ptxas said of the kernels when the module in this tree was built: nothing spills, two blocks of products fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metatasnet_fast import native
from metatasnet_fast.backends.cuda import KERNELS

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / f"native-{sys.implementation.cache_tag}" / "CMakeFiles" / "metatasnet_cuda.dir"
REGISTERS = 65536
"""Of a multiprocessor, on every GPU from sm_80 on."""


SPILLS = {
    ("sm_100", "MaskProduct", ""): 300,
    ("sm_100", "Pointwise", "InTf32"): 24,
    ("sm_120", "MaskProduct", ""): 288,
    ("sm_120", "MixConv", ""): 16,
    ("sm_120", "Mix", "InTf32"): 8,
    ("sm_120", "Pointwise", "InTf32"): 16,
}
"""Bytes that nvcc 13.0 spills at most where code is not compiled by default; ``MaskProduct`` of more than four instruments."""


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


def cubins_of_hopper() -> tuple[bytes, ...]:
    if native.cuda_reason():
        pytest.skip(f"there are no CUDA kernels: {native.cuda_reason()}")
    pytest.importorskip("triton", reason="NVIDIA's programs that read kernels come with Triton")
    from bench.ledger import launches

    if "90a" not in native.load().cuda_build_info()["architectures"]:
        pytest.skip("the kernels were not compiled for Hopper")
    return launches.cubins(90)


def test_kernels_for_hopper_multiply_by_wgmma_and_copy_by_tma() -> None:
    from bench.ledger.sass import function

    found = {}
    for cubin in cubins_of_hopper():
        for name in set(re.findall(rb"_ZN10metatasnet4cuda6kernelINS0_\d+(?:\w+Wgmma|PersistentBlocks)\w*", cubin)):
            found[name.decode()] = {i.base for i in function(cubin, name.decode()).instructions}
    assert len(found) == 5
    assert [name for name, instructions in found.items() if not instructions >= {"HGMMA", "UTMALDG"}] == []


def test_as_many_blocks_of_a_window_fit_on_a_multiprocessor_as_planned() -> None:
    """With the registers, and the shared memory that is asked for at launch, at the default sizes."""
    from bench.ledger import launches
    from bench.ledger.predict import GPUS, Cost
    from bench.ledger.sass import usage

    cubins_of_hopper()
    found: dict[str, set[int]] = {}
    for launch in launches.launches_of("cuda-wgmma", "window", GPUS["H100"]):
        if launch.symbol:
            registers = usage(launches.cubin_of(launch.symbol, 90), launch.symbol)[0]
            cost = Cost(registers=registers, shared=launch.shared, threads=launch.threads)
            found.setdefault(launch.name.split()[0], set()).add(cost.resident(GPUS["H100"]))
    planned = {"PersistentBlocks": 1, "PointwiseWgmma": 2, "OverlapAddWgmma": 2, "Pointwise": 2, "SourceMoments": 6}
    assert [name for name, blocks in planned.items() if min(found[name]) < blocks] == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_100", "sm_120"])
def test_other_architectures_spill_no_more_than_is_listed(architecture: str, tmp_path: Path) -> None:
    """Those that are not compiled by default: code for 8.0 runs on 8.6 and 8.9, what comes after 9.0 gets PTX."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not compile for {architecture}")
    found = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        command = [
            nvcc,
            "-std=c++17",
            "-O3",
            "-DNDEBUG",
            f"-arch={architecture}",
            f"-I{ROOT / 'csrc'}",
            "-cubin",
            "-Xptxas=-v",
        ]
        done = subprocess.run(
            [*command, source, "-o", tmp_path / "kernels"], capture_output=True, text=True, check=True
        )
        found += parse(done.stderr)
    assert {r.kernel for r in found} == set(KERNELS) and {r.architecture for r in found} == {architecture}
    assert all(r.shared == 0 for r in found)
    assert [r for r in found if r.spilled > SPILLS.get((r.architecture, r.kernel, r.arithmetic), 0)] == []
    products = [r for r in found if r.kernel in ("Pointwise", "Mix", "MixConv") and r.arithmetic != "InFloat32"]
    assert products and all(2 * 256 * r.registers <= REGISTERS for r in products)


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
