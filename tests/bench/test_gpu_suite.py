"""The GPU suite goes on where it stopped, whatever its steps do. Its steps here are small programs, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu_suite, one_pass
from bench.gpu_suite import Step, more_steps, run_all, steps, summary
from bench.gpu_timings import song_windows
from metatasnet_fast import MetaTasNetConfig
from metatasnet_fast.backends import available_backends


def python(name: str, code: str, limit: float = 20.0, **options: object) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, **options)  # type: ignore[arg-type]


def counting(name: str, file: Path, code: str = "") -> Step:
    return python(name, f"open({str(file)!r}, 'a').write('.')\n{code}")


def test_every_step_is_recorded_with_its_output(tmp_path: Path) -> None:
    suite = [
        python("good", "print('hello')"),
        python("bad", "import sys; print('what went wrong'); sys.exit(3)"),
        python("slow", "import time; time.sleep(60)", limit=0.5),
        python("none", "import sys; sys.exit(5)", fine=((5, "no test is marked gpu"),)),
        python("absent", "raise SystemExit(9)", unless="there is no C++ compiler"),
    ]
    state = run_all(suite, tmp_path, "code")
    assert state == json.loads((tmp_path / "state.json").read_text())
    assert {name: record["status"] for name, record in state["steps"].items()} == {
        "good": "passed",
        "bad": "failed",
        "slow": "timed out",
        "none": "passed",
        "absent": "left out",
    }
    assert state["steps"]["bad"]["detail"] == "exit code 3: what went wrong"
    assert (tmp_path / "good.log").read_text() == "hello\n"
    text = summary(state, tmp_path, suite)
    assert "no test is marked gpu" in text and "there is no C++ compiler" in text


def test_what_passed_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    suite = [counting("passes", once), counting("fails", twice, "raise SystemExit(1)")]
    for _ in range(2):
        run_all(suite, tmp_path, "code")
    assert (once.read_text(), twice.read_text()) == (".", "..")


def test_changed_code_is_run_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "runs"
    for code in ("one", "two", "two"):
        run_all([counting("step", file)], tmp_path, code)
    assert file.read_text() == ".."


@pytest.mark.parametrize("listed", [steps, more_steps])
def test_the_limits_of_all_steps_fit_ten_minutes(listed: Callable[..., list[Step]], tmp_path: Path) -> None:
    assert sum(step.limit for step in listed("cuda", tmp_path, tiny=False)) < 600


def test_the_gpu_tests_need_nothing_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    for name in ("hypothesis", "soundfile", "av", "scipy", "safetensors", "tqdm", "museval", "musdb"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{gpu_suite.ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", *gpu_suite.gpu_tests(), "-q", "-m", "gpu", "--collect-only"]
    found = subprocess.run(command, env=environment, cwd=gpu_suite.ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]


def test_the_short_list_runs_every_backend_of_this_machine() -> None:
    ran = dict(one_pass.passes(torch.device("cpu")))
    assert all(ran.values())
    served = {name for name, found in available_backends().items() if found.available}
    assert {line.split()[0] for line in ran} == served


def test_a_song_is_as_many_windows_as_the_separator_cuts() -> None:
    count, seconds = song_windows(MetaTasNetConfig())
    assert count * seconds > 2 * 240 and count % 2 == 0


@pytest.mark.slow
def test_the_real_timings_run_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--tiny", "--only", "environment", "inference", "training"]
    assert gpu_suite.main(arguments) == 0
    assert "training step 2x" in capsys.readouterr().out
    assert (tmp_path / "inference.jsonl").is_file() and (tmp_path / "training.jsonl").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_timings_run_on_a_gpu(tmp_path: Path) -> None:
    assert (
        gpu_suite.main(["--out", str(tmp_path), "--device", "cuda", "--tiny", "--only", "inference", "training"]) == 0
    )
