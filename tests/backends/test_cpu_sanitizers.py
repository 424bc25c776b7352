"""The compiled kernels without Python: no read or write out of bounds, no overflow, no race; and on ARM."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
ARM_COMPILER, ARM_MACHINE = "aarch64-linux-gnu-g++", "qemu-aarch64"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
ISAS = {
    "generic": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512_bf16": f"{AVX512} -mavx512bf16",
    "amx_bf16": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
}
SANITIZERS = {
    "memory and arithmetic": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "races": "-fsanitize=thread",
}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def understands(flags: str, folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    built = run(COMPILER, *flags.split(), source, "-o", folder / "empty")
    return built.returncode == 0 and (not flags.startswith("-fsanitize") or run(folder / "empty").returncode == 0)


def build(compiler: str, flags: list[str], isas: dict[str, str], folder: Path) -> Path:
    """The program ``run_stages`` of some instruction sets."""
    common = ["-std=c++17", "-O1", "-g", "-fno-math-errno", f"-I{ROOT / 'csrc'}", *flags]
    here = [f"-DMETATASNET_HAS_{name.upper()}=1" for name in isas]
    jobs = [(source, here) for source in [*(ROOT / "csrc/cpu").glob("*.cpp"), ROOT / "tests/cpp/run_stages.cpp"]]
    for name, extra in isas.items():
        jobs += [(s, [f"-DMETATASNET_ISA={name}", *extra.split()]) for s in (ROOT / "csrc/cpu/isa").glob("*.cpp")]

    def compiled(numbered: tuple[int, tuple[Path, list[str]]]) -> Path:
        number, (source, extra) = numbered
        target = folder / f"{number}.o"
        built = run(compiler, *common, *extra, "-c", source, "-o", target)
        assert built.returncode == 0, built.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, enumerate(jobs)))
    program = folder / "run_stages"
    linked = run(compiler, *common, *objects, "-pthread", "-o", program)
    assert linked.returncode == 0, linked.stderr
    return program


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean(sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    if not understands(flags, tmp_path):
        pytest.skip(f"{COMPILER} has no {flags}")
    isas = {name: extra for name, extra in ISAS.items() if understands(extra, tmp_path)}
    done = run(build(COMPILER, flags.split(), isas, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instruction sets run" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(ARM_COMPILER) is None, reason=f"there is no {ARM_COMPILER} here")
@pytest.mark.skipif(shutil.which(ARM_MACHINE) is None, reason=f"there is no {ARM_MACHINE} here")
def test_kernels_run_on_arm(tmp_path: Path) -> None:
    """The portable instruction set, whose vectors the compiler makes NEON's, on an emulated processor."""
    done = run(ARM_MACHINE, build(ARM_COMPILER, ["-static"], {"generic": ""}, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instruction sets run: 1" in done.stdout
