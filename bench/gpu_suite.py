"""Everything that needs a GPU, in one command that fits ten minutes: build, tests, parity, timings.

    python bench/gpu_suite.py --out DIR
    python bench/gpu_suite.py --out DIR --more      (what takes longer: races, tuning, a catalogue)

Each step is a process of its own with a limit on its time, and is recorded in DIR/state.json when it ends; started again, the
command goes on after the last step that passed, unless the code has changed since. Needs torch, numpy, pytest; no network.
A short table comes last. Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_TESTS = 5
"""pytest's exit code when nothing was selected."""
LEFT_OUT = 77
"""Exit code of a step that this machine lacks something for; it says what."""


@dataclass(frozen=True)
class Step:
    """A command, the seconds it may take, and the exit codes that are as good as 0, with what they mean.

    ``unless`` is a reason to leave the step out; None to run it.
    """

    name: str
    command: Sequence[str]
    limit: float
    fine: tuple[tuple[int, str], ...] = ()
    unless: str | None = None


def steps(device: str, out: Path, tiny: bool) -> list[Step]:
    """The suite, what decides most first. The limits add up to less than ten minutes; a trial on a CPU may take longer."""
    python = sys.executable
    timings = [python, "-m", "bench.gpu_timings"]
    common = ["--device", device, "--out", str(out), *(["--tiny", "--no-compile"] if tiny else [])]
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    build = None if compiler and not tiny else "there is no C++ compiler" if not compiler else "a trial run"
    tests = ["-m", "pytest", *gpu_tests(), "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    found = [
        Step("environment", [python, "-m", "metatasnet_fast", "info"], 20),
        Step("build", [python, "setup.py", "-q", "build_ext", "--inplace"], 80, unless=build),
        Step("selftest", [python, "-m", "metatasnet_fast", "selftest", "--device", device], 45),
        Step(
            "golden", [python, "-m", "bench.golden_parity", "--device", device, "--out", str(out / "golden.jsonl")], 50
        ),
        # The first time, some two hundred programs are compiled; Triton keeps them for the next.
        Step("tests", [python, *tests], 200, ((NO_TESTS, "no test is marked gpu"),), "a trial run" if tiny else None),
        Step("inference", [*timings, "inference", *common], 90),
        Step("training", [*timings, "training", *common], 100),
    ]
    return [replace(step, limit=5 * step.limit) for step in found] if tiny else found


def gpu_tests() -> list[str]:
    """The files with tests that need a GPU; the others import packages that a bare machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def more_steps(device: str, out: Path, tiny: bool) -> list[Step]:
    """What is worth a second run of ten minutes."""
    python = sys.executable
    timings = [python, "-m", "bench.gpu_timings"]
    common = ["--device", device, "--out", str(out), *(["--tiny", "--no-compile"] if tiny else [])]
    catalogue = [python, "-m", "bench.gpu_catalogue", "--device", device, "--out", str(out)]
    return [
        Step("jobs", [*timings, "jobs", *common], 45),
        Step("cuda-kernels", [python, "tests/cuda/sanitize.py"], 60, ((LEFT_OUT, "see the log"),)),
        sanitizer("memcheck", device, 60),
        sanitizer("racecheck", device, 60),
        Step("operations", [*timings, "operations", *common], 90),
        Step("tune", [python, "-m", "metatasnet_fast", "tune", "--out", str(out / "tuned.json")], 110),
        Step("catalogue", [*catalogue, *(["--tiny"] if tiny else [])], 150),
    ]


def sanitizer(tool: str, device: str, limit: float) -> Step:
    """A tool of compute-sanitizer over a tiny network; tensors lie in allocations of their own, so that bounds are seen."""
    program = shutil.which("compute-sanitizer")
    run = [sys.executable, "-m", "bench.one_pass", "--device", device]
    command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", program or "", "--tool", tool, "--error-exitcode", "9", *run]
    return Step(tool, command, limit, unless=None if program else "there is no compute-sanitizer")


def run(step: Step, out: Path) -> dict[str, Any]:
    """Run a step, keep all it says in DIR/NAME.log, and return its record."""
    if step.unless:
        return {"status": "left out", "seconds": 0.0, "detail": step.unless}
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with open(out / f"{step.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            code: int | None = process.wait(step.limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    seconds = round(time.monotonic() - began, 1)
    meanings = dict(step.fine)
    if code is None:
        return {"status": "timed out", "seconds": seconds, "detail": f"not done after {step.limit:g} s"}
    if code == 0 or code in meanings:
        return {"status": "passed", "seconds": seconds, "detail": meanings.get(code, "")}
    return {
        "status": "failed",
        "seconds": seconds,
        "detail": f"exit code {code}: {_last_line(out / f'{step.name}.log')}",
    }


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "it said nothing"


def run_all(suite: Sequence[Step], out: Path, code: str) -> dict[str, Any]:
    """Run what has not passed with this ``code`` yet; the state is on disk after every step."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "state.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if state.get("code") != code:
        state = {"code": code, "steps": {}}
    for step in suite:
        if state["steps"].get(step.name, {}).get("status") == "passed":
            print(f"== {step.name}: passed before", flush=True)
            continue
        print(f"== {step.name}: {' '.join(map(str, step.command))}", flush=True)
        state["steps"][step.name] = run(step, out)
        _write(path, state)
    return state


def _write(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(state, indent=2))
    partial.replace(path)


def code_version() -> str:
    """What the results belong to: a checksum of the sources, since a machine for measuring may have no git."""
    digest = hashlib.sha256()
    for folder in ("metatasnet_fast", "kernels", "csrc", "bench", "tests"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".npz") and file.is_file():
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def summary(state: dict[str, Any], out: Path, suite: Sequence[Step]) -> str:
    """The timings' tables, then a line for every step."""
    parts = []
    for name in ("operations", "jobs", "inference", "training"):
        log = out / f"{name}.log"
        if state["steps"].get(name, {}).get("status") in ("passed", "failed") and log.exists():
            parts.append(log.read_text(encoding="utf-8", errors="replace").strip())
    lines = []
    for step in suite:
        record = state["steps"].get(step.name, {"status": "not run", "seconds": 0.0, "detail": ""})
        lines.append(f"{step.name:<12} {record['status']:<10} {record['seconds']:6.1f} s  {record['detail']}".rstrip())
    return "\n\n".join([*parts, "\n".join(lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="try the program: a network of a few channels, nothing built"
    )
    parser.add_argument("--more", action="store_true", help="the steps that take longer, instead")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--fresh", action="store_true", help="forget what has passed before")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    if args.fresh:
        (out / "state.json").unlink(missing_ok=True)
    listed = (more_steps if args.more else steps)(args.device, out, args.tiny)
    suite = [step for step in listed if not args.only or step.name in args.only]
    if not suite:
        parser.error(f"no such step: {' '.join(args.only)}")
    state = run_all(suite, out, f"{code_version()} {args.device} {'tiny' if args.tiny else 'full'}")
    print(summary(state, out, suite))
    return 0 if all(state["steps"][step.name]["status"] in ("passed", "left out") for step in suite) else 1


if __name__ == "__main__":
    sys.exit(main())
