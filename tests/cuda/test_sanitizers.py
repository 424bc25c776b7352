"""The CUDA kernels, emulated on the host, under the compiler's sanitizers; and the emulator's own promises."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler here")
def test_swizzle_and_descriptors_are_those_of_the_ptx_isa() -> None:
    checked = run(COMPILER, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", ROOT / "tests/cpp/wgmma_layout.cpp")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler here")
def test_emulated_kernels_are_clean(tmp_path: Path) -> None:
    common = ["-std=c++17", "-O1", "-g", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", *FLAGS]
    sources = [*(ROOT / "csrc/cuda/emulator").glob("*.cpp"), ROOT / "tests/cpp/run_cuda_kernels.cpp"]

    def build(source: Path) -> Path:
        target = tmp_path / f"{source.stem}.o"
        built = run(COMPILER, *common, "-c", source, "-o", target)
        assert built.returncode == 0, built.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources))
    program = tmp_path / "run_cuda_kernels"
    linked = run(COMPILER, *common, *objects, "-o", program)
    assert linked.returncode == 0, linked.stderr
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as they should" in done.stdout
