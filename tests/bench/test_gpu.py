"""The GPU script runs its steps within their limits and loses nothing when it is killed. Its steps here are small programs."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.gpu.__main__ import FILES, PART, Call, main, problem_of, read_rows, second_steps
from bench.gpu.steps import CALLS, GPU_TESTS, ROOT, Step, plan, scaled, turns
from bench.gpu.work import (
    APART,
    SONG_WINDOWS,
    WINDOW_SECONDS,
    kernel_name,
    kernel_row,
    launches,
    predictions,
    write_lines,
)
from metatasnet_fast import MetaTasNetConfig
from metatasnet_fast.backends import available_backends
from metatasnet_fast.separation.fast_mode import default_shape, plan_windows


def python(name: str, code: str, limit: float = 20.0, **options: object) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, **options)  # type: ignore[arg-type]


def run(
    steps: Sequence[Step], tmp_path: Path, seconds: float = 60.0, device: str = "cuda"
) -> dict[str, dict[str, object]]:
    call = Call(steps, tmp_path / "out", tmp_path / "work", {}, device, seconds)
    call.run()
    return call.state


def statuses(state: dict[str, dict[str, object]]) -> dict[str, object]:
    return {name: record["status"] for name, record in state.items()}


def test_every_step_is_recorded_with_its_output(tmp_path: Path) -> None:
    steps = [
        python("good", "print('hello')"),
        python("bad", "import sys; print('what went wrong'); sys.exit(3)"),
        python("hangs", "import time; time.sleep(60)", limit=0.5),
        python("follows", "pass", needs=("bad",)),
        python("absent", "pass", program="no-such-program"),
        Step("nothing", [str(tmp_path / "nothing")], 5),
    ]
    state = run(steps, tmp_path)
    expected = {"good": "passed", "hangs": "timed out"}
    assert statuses(state) == {step.name: expected.get(step.name, "failed") for step in steps}
    assert state["bad"]["detail"] == "exit code 3: what went wrong"
    assert sorted(os.listdir(tmp_path / "out")) == sorted(FILES)
    records = {row["step"]: row["status"] for row in read_rows(tmp_path / "out" / "results.jsonl")}
    assert records == statuses(state)
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        assert archive.extractfile("good.log").read() == b"hello\n"  # type: ignore[union-attr]


def test_steps_run_together_and_those_that_are_timed_alone(tmp_path: Path) -> None:
    """The first two wait for each other's file: one after the other, they would never end."""

    def meet(own: str, other: str) -> str:
        return f"import os, time\nopen({own!r}, 'w')\nwhile not os.path.exists({other!r}): time.sleep(0.01)"

    a, b, c = (str(tmp_path / name) for name in "abc")
    steps = [
        python("one", meet(a, b)),
        python("two", meet(b, a)),
        python("alone", f"import os, time\nopen({c!r}, 'w'); time.sleep(0.5); os.unlink({c!r})", alone=True),
        python("after", f"import os; assert not os.path.exists({c!r})"),
    ]
    assert set(statuses(run(steps, tmp_path)).values()) == {"passed"}


def test_a_call_ends_in_time_when_every_step_hangs(tmp_path: Path) -> None:
    steps = [python(name, "import time; time.sleep(60)", limit=30.0, alone=True) for name in ("one", "two")]
    began = time.monotonic()
    state = run(steps, tmp_path, seconds=1.0)
    assert time.monotonic() - began < 20
    assert statuses(state) == {"one": "timed out", "two": "not run"}


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    child = f"import time\ntime.sleep(3)\nopen({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert statuses(run([python("slow", code, limit=1.5)], tmp_path)) == {"slow": "timed out"}
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize("call", CALLS)
def test_the_limits_of_all_steps_fit_the_call(call: str) -> None:
    steps = plan(call)
    assert turns(steps) <= CALLS[call]
    assert len({step.name for step in steps}) == len(steps)


def test_what_did_not_pass_comes_first_in_the_second_call() -> None:
    passed = {step.name: {"status": "passed", "seconds": 1.0, "detail": ""} for step in plan("a")}
    state = passed | {"kernels": {"status": "failed", "seconds": 1.0, "detail": ""}}
    assert [step.name for step in second_steps("cuda", False, state, False)][0] == "kernels"
    assert [step.name for step in second_steps("cuda", False, state, True)][:3] == ["build", "warm", "kernels"]
    assert turns(second_steps("cuda", False, {}, False)) <= CALLS["b"]


def test_a_step_whose_preparation_does_not_fit_is_left_out() -> None:
    steps = [python("build", "", limit=100.0, alone=True), python("test", "", limit=20.0, needs=("build",))]
    assert [(step.name, step.limit) for step in scaled(steps, 110.0)] == [("build", 100.0), ("test", 10.0)]
    assert scaled(steps, 5.0) == []


def test_every_gpu_test_of_the_kernels_is_in_the_script() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    marked = {str(file.relative_to(ROOT)) for file in files if "mark.gpu\n" in file.read_text(encoding="utf-8")}
    assert marked - {"tests/bench/test_gpu.py"} <= {name for names in GPU_TESTS.values() for name in names}


def test_the_gpu_tests_need_nothing_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    for name in ("soundfile", "av", "tqdm", "museval", "musdb"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    files = [name for names in GPU_TESTS.values() for name in names]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-m", "gpu", "--collect-only"]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]


@pytest.mark.parametrize(
    ("cases", "problem"),
    [
        ("<testcase name='a'/>", None),
        ("<testcase name='a'/><testcase name='b'><failure/></testcase>", "1 of 2 tests failed, first b"),
        ("<testcase name='a'><skipped message='no GPU'/></testcase>", "1 of 1 tests were skipped: no GPU"),
        ("<testcase name='a'><skipped message='there is no second GPU'/></testcase>", None),
        ("", "no test ran"),
    ],
)
def test_a_skipped_test_is_a_failure(cases: str, problem: str | None, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert problem_of(tmp_path / "report.xml") == problem


TICKING = """
import json, pathlib, sys, time
for i in range(10000):
    with open(sys.argv[1], "a") as file: file.write(json.dumps({"kernel": f"k{i}", "milliseconds": i, "text": f"k{i}"}) + "\\n")
    time.sleep(0.002)
"""
SCRIPT = """
import sys
from pathlib import Path
from bench.gpu import __main__ as program
from bench.gpu.steps import Step
program.REFRESH = 0.02
folder = Path(sys.argv[1])
steps = [Step("first", [sys.executable, "-c", "print('done')"], 20),
         Step("kernels", [sys.executable, "-c", sys.argv[2], str(folder / "work" / "kernels.jsonl")], 60)]
program.Call(steps, folder / "out", folder / "work", {}, "cuda", 60.0).run()
"""


def test_nothing_is_lost_when_it_is_killed_at_any_moment(tmp_path: Path) -> None:
    """Twenty kills: all six files are whole, and hold what was there before the last writing."""
    chance = random.Random(5)
    for number in range(20):
        folder = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), TICKING], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (folder / "out" / "logs.tar.gz").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(read_rows(folder / "work" / "kernels.jsonl"))
        check_whole(folder)
        for pid in children_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        assert before >= len(rows_of(folder, "kernels"))


def children_with(text: str) -> list[int]:
    """Processes that this test started: their command line names its folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def rows_of(folder: Path, step: str) -> list[dict[str, object]]:
    return [row for row in read_rows(folder / "out" / "results.jsonl") if row.get("row_of") == step]


def check_whole(folder: Path) -> None:
    out = folder / "out"
    assert set(os.listdir(out)) - {PART} == set(FILES)
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {row["step"] for row in records if "step" in row} <= {"first", "kernels"}
    with open(out / "kernels.csv", newline="") as file:
        assert all(row["kernel"] for row in csv.DictReader(file))
    ElementTree.parse(out / "junit.xml")
    with tarfile.open(out / "logs.tar.gz") as archive:
        archive.getnames()
    assert "step" in (out / "summary.txt").read_text()


OURS = "void metatasnet::cuda::kernel<metatasnet::cuda::{}>(metatasnet::cuda::X::Args)"
NAMES = {
    "depthwise_fwd_kernel": "depthwise_fwd",
    OURS.format("MixConv"): "MixConv",
    OURS.format("MaskProduct<metatasnet::cuda::Bfloat16, (int)4> "): "MaskProduct Bfloat16 4",
    OURS.format("Pointwise<metatasnet::cuda::InBfloat16, (metatasnet::cuda::From)1> "): "Pointwise InBfloat16 From 1",
    "Memset (Device)": "memset",
    "void at::native::vectorized_elementwise_kernel<4, ...>(int)": "torch",
}


@pytest.mark.parametrize("name", NAMES)
def test_kernels_have_the_ledgers_names(name: str) -> None:
    assert kernel_name(name) == NAMES[name]


def test_a_measured_kernel_stands_beside_its_prediction() -> None:
    row = kernel_row("triton", "inference", "power", 3, 4.0, {"seconds": 2e-3, "hbm": 8e9, "flops": 4e9})
    assert (row["over_predicted"], row["gb_per_s"], row["tflop_per_s"]) == (2.0, 2000.0, 1.0)
    assert "predicted_ms" not in kernel_row("triton", "inference", "unknown", 3, 4.0, None)


def test_a_wrong_row_or_none_is_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert write_lines([{"text": "a"}, {"text": "b", "wrong": True}], out) == 1
    assert [row["text"] for row in read_rows(out)] == ["a", "b"]
    assert write_lines([], None) == 1
    assert write_lines([{"text": "a", "wrong": False}], None) == 0


def test_the_launches_run_every_backend_of_this_machine() -> None:
    rows = list(launches(torch.device("cpu"), True))
    assert not any(row["wrong"] for row in rows)
    served = {name for name, found in available_backends().items() if found.available}
    assert {row["text"].split()[0] for row in rows} == served - {"reference", *APART}


def test_a_song_is_as_many_windows_as_the_separator_cuts() -> None:
    config = MetaTasNetConfig()
    frames_per_second = config.sampling_rate / config.W
    shape = default_shape(config)
    assert 2 * len(plan_windows(round(240 * frames_per_second), shape)) == SONG_WINDOWS
    assert shape.window / frames_per_second == WINDOW_SECONDS


@pytest.mark.slow
def test_the_real_steps_run_in_miniature(tmp_path: Path) -> None:
    """Every step that has a way on a CPU passes."""
    arguments = ["a", "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), "--device", "cpu", "--tiny"]
    assert main([*arguments, "--only", "environment", "kernels", "inference", "training"]) == 0
    timed = [row for row in read_rows(tmp_path / "out" / "results.jsonl") if row.get("samples")]
    assert {row["job"] for row in timed} == {"inference", "training step"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_timings_run_on_a_gpu(tmp_path: Path) -> None:
    arguments = ["a", "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), "--tiny"]
    assert main([*arguments, "--only", "kernels", "inference", "training"]) == 0


def test_measurements_get_the_newest_prediction_of_each_backend() -> None:
    """A ledger may be recorded for one backend alone."""
    found = predictions("NVIDIA H100 80GB HBM3")
    assert {key[:2] for key in found} == {
        ("triton", "inference"),
        ("triton", "training"),
        ("cuda", "inference"),
        ("cuda-wgmma", "inference"),
    }
    assert predictions("") == {}
