"""List the steps of the GPU script's two calls, a and b, in their order, each step with its limit in seconds."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["CALLS", "GPU_TESTS", "ROOT", "Step", "obstacle", "path", "plan", "scaled", "turns"]

ROOT = Path(__file__).resolve().parents[2]
CALLS = {"a": 560.0, "b": 190.0}
"""Seconds that each call may take, by its name."""
LEAST = 10.0
"""Smallest limit in seconds of a step; a step that would get less is left out."""

GPU_TESTS = {
    "cuda-tests": ["tests/backends/test_cuda_gpu.py"],
    "wgmma-tests": ["tests/backends/test_cuda_wgmma_gpu.py"],
    "triton-tests": [
        "tests/ops/test_codec_gpu.py",
        "tests/ops/test_gpu.py",
        "tests/backends/test_triton_gpu.py",
        "tests/backends/test_graphs.py",
    ],
}
PROFILED = "MixConv|Depthwise|OverlapAdd|block_pair_kernel|depthwise_fwd_kernel"
"""Kernels for which ncu records the full set of counters."""
NCU = (
    "ncu --set full --clock-control none --target-processes all --csv --page raw --kernel-name-base function "
    "--filter-mode per-launch-config --launch-count 1 --log-file {work}/ncu.csv --kernel-name"
).split() + [f"regex:{PROFILED}"]


@dataclass(frozen=True)
class Step:
    """One step of a call: a process.

    Attributes:
        command: the words of the command. ``{work}`` stands for the folder of the results: rows go to ``NAME.jsonl``,
            reports of tests to ``NAME.xml``.
        limit: seconds after which the process is ended.
        needs: names of the steps that must have passed, or been left out, before this step starts.
        alone: whether no other step may run at the same time.
        needs_gpu: whether the step is left out on a CPU.
        program: if this program is missing, the step is not started and counts as failed.
        tests: whether the step is a run of pytest, in which a skipped test is a failure.
        environment: variables that are added to those of this process.
    """

    name: str
    command: Sequence[str]
    limit: float
    needs: tuple[str, ...] = ()
    alone: bool = False
    needs_gpu: bool = False
    program: str = ""
    tests: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def plan(call: str, device: str = "cuda", tiny: bool = False) -> list[Step]:
    """Return a call's own steps in their order. The steps of call a that call b repeats are not among those of call b.

    Args:
        tiny: use a network of a few channels, to try the script; its times mean nothing.
    """
    own = _first_call if call == "a" else _second_call
    return own(["--device", device, *(["--tiny"] if tiny else [])])


def _first_call(options: list[str]) -> list[Step]:
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    # Without nvcc the build fails, and so does this step: the call's purpose is to test the kernels.
    everything = dict.fromkeys(("METATASNET_NATIVE", "METATASNET_CUDA"), "on")
    everything["METATASNET_CUDA_ARCHITECTURES"] = "90a-real"
    return [
        Step("build", build, 90, environment=everything, needs_gpu=True),
        _work("warm", 75, options, needs_gpu=True),
        _tests("triton-tests", 150),
        _tests("cuda-tests", 60, needs=("build",)),
        _work("kernels", 50, options, alone=True),
        _bench("inference", 110, options),
        _bench("training", 65, options),
        _work("golden", 60, options),
        Step("selftest", [sys.executable, "-m", "metatasnet_fast", "selftest", *options[:2]], 90),
        Step("environment", [sys.executable, "-m", "metatasnet_fast", "info"], 45),
        Step("ncu", [*NCU, *_command("window", options)], 45, alone=True, needs_gpu=True, program="ncu"),
        *(_sanitizer(tool, options) for tool in ("memcheck", "racecheck", "synccheck")),
    ]


def _second_call(options: list[str]) -> list[Step]:
    tune = [sys.executable, "-m", "metatasnet_fast", "tune", "--seconds", "50", "--out", "{work}/tuned.json"]
    return [
        Step("tune", tune, 75, alone=True, needs_gpu=True),
        _bench("compiled", 65, options),
        _tests("wgmma-tests", 28),
        _work("wgmma", 22, options, alone=True),
    ]


def _command(job: str, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "bench.gpu.work", job, *options]


def _work(name: str, limit: float, options: Sequence[str], **more: bool | tuple[str, ...]) -> Step:
    return Step(name, [*_command(name, options), "--out", f"{{work}}/{name}.jsonl"], limit, **more)  # type: ignore[arg-type]


def _bench(name: str, limit: float, options: Sequence[str]) -> Step:
    """Return the step that measures times. It ends by itself before its limit, and writes each row as soon as it is
    known."""
    command = [*_command(name, options), "--seconds", f"{0.9 * limit:.0f}", "--out", f"{{work}}/{name}.jsonl"]
    return Step(name, command, limit, alone=True)


def _tests(name: str, limit: float, needs: tuple[str, ...] = ()) -> Step:
    """Return a step of tests in six processes, so that an illegal address breaks only the remaining tests of one
    process."""
    command = [sys.executable, "-m", "pytest", *GPU_TESTS[name], "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-n", "6", "--timeout", "60", "--junitxml", f"{{work}}/{name}.xml"]
    return Step(name, command, limit, needs, needs_gpu=True, tests=True)


def _sanitizer(tool: str, options: Sequence[str]) -> Step:
    """Return a step that runs a sanitizer's tool. Each tensor is a separate allocation, so that an access beyond it is
    detected."""
    command = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
    command += _command("launches", options)
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, command, 45, needs_gpu=True, program="compute-sanitizer", environment=apart)


def turns(steps: Iterable[Step]) -> float:
    """Return the seconds after which all steps have ended if each takes as long as its limit allows."""
    ended: dict[str, float] = {}
    barrier = 0.0
    for step in steps:
        start = max([barrier, *(ended.get(name, 0.0) for name in step.needs)])
        if step.alone:
            start = max([start, *ended.values()])
        ended[step.name] = start + step.limit
        if step.alone:
            barrier = ended[step.name]
    return max(ended.values(), default=0.0)


def obstacle(step: Step, device: str) -> str | None:
    """Return the reason why a step cannot run on this machine; None if it can run."""
    if step.needs_gpu and device == "cpu":
        return "it needs a GPU"
    if step.program and shutil.which(step.program, path=path()) is None:
        return f"there is no {step.program} on PATH"
    return None


def path() -> str:
    """Return a PATH that starts with the interpreter's folder, where a virtual environment has its programs, such as
    cmake."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def scaled(steps: Sequence[Step], seconds: float) -> list[Step]:
    """Return the steps that fit into ``seconds``. Late steps get shorter limits; steps whose limit would be below LEAST
    are left out, and so are steps that need one of these."""
    found: list[Step] = []
    for step in steps:
        missing = {other.name for other in steps} - {other.name for other in found}
        limit = step.limit - max(0.0, turns([*found, step]) - seconds)
        if limit >= LEAST and not missing & set(step.needs):
            found.append(replace(step, limit=limit))
    return found
