"""The compiled kernels under the compilers' sanitizers: no read or write out of bounds, no overflow, no race."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean(sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    if not understands(flags, tmp_path):
        pytest.skip(f"{COMPILER} has no {flags}")
    isas = {name: extra for name, extra in ISAS.items() if understands(extra, tmp_path)}
    common = ["-std=c++17", "-O1", "-g", "-fno-math-errno", f"-I{ROOT / 'csrc'}", *flags.split()]
    here = [f"-DMETATASNET_HAS_{name.upper()}=1" for name in isas]
    jobs = [(source, here) for source in [*(ROOT / "csrc/cpu").glob("*.cpp"), ROOT / "tests/cpp/run_stages.cpp"]]
    for name, extra in isas.items():
        jobs += [(s, [f"-DMETATASNET_ISA={name}", *extra.split()]) for s in (ROOT / "csrc/cpu/isa").glob("*.cpp")]

    def build(numbered: tuple[int, tuple[Path, list[str]]]) -> Path:
        number, (source, extra) = numbered
        target = tmp_path / f"{number}.o"
        built = run(COMPILER, *common, *extra, "-c", source, "-o", target)
        assert built.returncode == 0, built.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, enumerate(jobs)))
    program = tmp_path / "run_stages"
    linked = run(COMPILER, *common, *objects, "-pthread", "-o", program)
    assert linked.returncode == 0, linked.stderr
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instruction sets run" in done.stdout
