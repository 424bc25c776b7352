"""What the GPU suite does: its steps, in three commands of ten minutes at most."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_TESTS = 5
"""pytest's exit code when nothing was selected."""
LEFT_OUT = 77
"""Exit code of a step that this machine lacks something for; it says what."""
ALONE = "tests/backends/test_cuda_gpu.py"
"""Tests that look at how much memory is free on the whole device."""


@dataclass(frozen=True)
class Step:
    """A command, the seconds it may take, and the exit codes that are as good as 0, with what they mean.

    ``unless`` is a reason to leave the step out; None to run it. ``beside`` lets it run together with its neighbours of which
    that holds, too.
    """

    name: str
    command: Sequence[str]
    limit: float
    fine: tuple[tuple[int, str], ...] = ()
    unless: str | None = None
    beside: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def steps(device: str, out: Path, tiny: bool) -> list[Step]:
    """The suite, what decides most first. The limits fit into ten minutes; a trial on a CPU may take longer."""
    python = sys.executable
    golden = [python, "-m", "bench.golden_parity", "--device", device, "--out", str(out / "golden.jsonl")]
    trial = "a trial run" if tiny else None
    found = [
        build(trial),
        Step("environment", [python, "-m", "metatasnet_fast", "info"], 45),
        Step("selftest", [python, "-m", "metatasnet_fast", "selftest", "--device", device], 170, beside=True),
        Step("golden", golden, 170, beside=True),
        *(tests([file], 170, trial, beside=True) for file in gpu_tests() if file != ALONE),
        *(
            compiling(kind, precision, device, out, tiny)
            for kind in ("inference", "training")
            for precision in ("bfloat16", "float32")
        ),
        tests([ALONE], 40, trial),
        timings("inference", 115, device, out, tiny),
        timings("training", 115, device, out, tiny),
    ]
    return [replace(step, limit=5 * step.limit) for step in found] if tiny else found


def more_steps(device: str, out: Path, tiny: bool) -> list[Step]:
    """What is worth a second run of ten minutes. What the sanitizer watches is compiled before."""
    python = sys.executable
    tune = [python, "-m", "metatasnet_fast", "tune", "--seconds", "60", "--out", str(out / "tuned.json")]
    return [
        Step("one-pass", [python, "-m", "bench.one_pass", "--device", device], 150, beside=True),
        compiling("inference", "tf32", device, out, tiny),
        Step("cuda-kernels", [python, "tests/cuda/sanitize.py"], 60, ((LEFT_OUT, "see the log"),)),
        sanitizer("memcheck", device, 75),
        sanitizer("racecheck", device, 75),
        timings("jobs", 50, device, out, tiny),
        timings("operations", 60, device, out, tiny),
        Step("tune", tune, 120),
    ]


def rest_steps(device: str, out: Path, tiny: bool) -> list[Step]:
    """What takes longest and decides least: torch.compile takes minutes for a network."""
    catalogue = [sys.executable, "-m", "bench.gpu_catalogue", "--device", device, "--out", str(out)]
    lacking = [name for name in ("soundfile", "safetensors") if importlib.util.find_spec(name) is None]
    unless = f"not installed: {', '.join(lacking)}" if lacking else None
    return [
        timings("operations", 100, device, out, tiny, compiled=True),
        timings("inference", 180, device, out, tiny, compiled=True),
        timings("training", 150, device, out, tiny, compiled=True),
        Step("catalogue", [*catalogue, *(["--tiny"] if tiny else [])], 150, unless=unless),
    ]


def build(trial: str | None) -> Step:
    """The compiled module in place; where there is an nvcc, a failure to compile the CUDA kernels is one."""
    lacking = [] if any(shutil.which(name) for name in ("c++", "g++", "clang++")) else ["a C++ compiler"]
    lacking += [] if shutil.which("cmake", path=path()) else ["cmake"]
    lacking += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
    environment = {"METATASNET_NATIVE": "on", "METATASNET_CUDA": "on" if shutil.which("nvcc") else "auto"}
    return Step(
        "build",
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        100,
        unless=trial or (f"there is no {', no '.join(lacking)}" if lacking else None),
        environment=environment,
    )


def tests(files: Sequence[str], limit: float, trial: str | None, beside: bool = False) -> Step:
    command = [sys.executable, "-m", "pytest", *files, "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    return Step(Path(files[0]).stem, command, limit, ((NO_TESTS, "no test is marked gpu"),), trial, beside)


def timings(kind: str, limit: float, device: str, out: Path, tiny: bool, compiled: bool = False) -> Step:
    """The timings of a kind, which end by themselves, with what they have, before their limit."""
    name = f"{kind}-compiled" if compiled else kind
    command = [sys.executable, "-m", "bench.gpu_timings", kind, "--device", device, "--out", str(out / f"{name}.jsonl")]
    command += ["--seconds", str(0.75 * limit), *(["--tiny"] if tiny else []), *(["--compile"] if compiled else [])]
    return Step(name, command, limit)


def compiling(kind: str, precision: str, device: str, out: Path, tiny: bool) -> Step:
    """What timings will launch, once: Triton keeps on the disk what it compiled."""
    command = [sys.executable, "-m", "bench.gpu_timings", kind, "--device", device, "--out", str(out)]
    command += ["--compile-only", precision, *(["--tiny"] if tiny else [])]
    return Step(f"{kind}-{precision}", command, 170 if kind == "training" else 150, beside=True)


def gpu_tests() -> list[str]:
    """The files with tests that need a GPU; the others import packages that a bare machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def sanitizer(tool: str, device: str, limit: float) -> Step:
    """A tool of compute-sanitizer over a tiny network; tensors lie in allocations of their own, so that bounds are seen."""
    program = shutil.which("compute-sanitizer")
    run = [sys.executable, "-m", "bench.one_pass", "--device", device]
    command = [program or "", "--tool", tool, "--target-processes", "all", "--error-exitcode", "9", *run]
    unless = None if program else "there is no compute-sanitizer"
    return Step(tool, command, limit, unless=unless, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def turns(suite: Iterable[Step]) -> list[list[Step]]:
    """The steps in their order, those that run together in one list."""
    found: list[list[Step]] = []
    for step in suite:
        if step.beside and found and found[-1][0].beside:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def longest(suite: Iterable[Step]) -> float:
    """Seconds that a suite can take."""
    return sum(max(step.limit for step in turn) for turn in turns(suite))


def path() -> str:
    """Programs that lie beside the interpreter, as cmake does in a virtual environment, are found first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
