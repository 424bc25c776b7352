"""The GPU suite goes on where it stopped, whatever its steps do. Its steps here are small programs, on the CPU."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu_steps, gpu_suite, gpu_timings, one_pass
from bench.gpu_steps import Step, longest, more_steps, rest_steps, steps
from bench.gpu_suite import run_all, summary
from bench.gpu_timings import song_windows, training_batch
from metatasnet_fast import MetaTasNetConfig
from metatasnet_fast.backends import Request, available_backends
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.benchmark import Entrants
from metatasnet_fast.precision import Precision


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


@pytest.mark.parametrize("listed", [steps, more_steps, rest_steps])
def test_the_limits_of_all_steps_fit_ten_minutes(listed: Callable[..., list[Step]], tmp_path: Path) -> None:
    suite = listed("cuda", tmp_path, tiny=False)
    assert longest(suite) < 600
    assert len({step.name for step in suite}) == len(suite), "each has its own log"


def test_weights_read_anew_compete_with_weights_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(gpu_timings.Entrants, "of", lambda *arguments: Entrants(device, [Precision.tf32], ["cuda"]))
    (other,) = gpu_timings.entrants(device, False, [Precision.tf32]).extra.values()
    assert isinstance(other, CudaBackend) and other.keep_weights is False
    assert other.supports(Request(device, Precision.tf32)) is not None


def test_every_gpu_test_is_in_the_suite_once(tmp_path: Path) -> None:
    run = [file for step in steps("cuda", tmp_path, tiny=False) for file in step.command if file.endswith(".py")]
    assert sorted(file for file in run if file.startswith("tests")) == sorted(gpu_steps.gpu_tests())


def test_steps_beside_each_other_run_at_the_same_time_and_the_others_alone(tmp_path: Path) -> None:
    """Each waits for the other's file: one after the other, the first would never end."""

    def meet(own: str, other: str) -> str:
        return f"import os, time\nopen({own!r}, 'w')\nwhile not os.path.exists({other!r}): time.sleep(0.01)"

    a, b = (str(tmp_path / name) for name in "ab")
    suite = [
        python("before", "pass"),
        python("one", meet(a, b), beside=True),
        python("two", meet(b, a), beside=True),
        python("after", f"import os; assert os.path.exists({a!r})"),
    ]
    state = run_all(suite, tmp_path, "code")
    assert [record["status"] for record in state["steps"].values()] == ["passed"] * 4
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        assert {"state.json", "one.log", "two.log", "after.log"} <= set(archive.getnames())


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    """As compute-sanitizer starts Python: it would go on using the GPU beside what is timed."""
    child = f"import time\ntime.sleep(3)\nopen({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    state = run_all([python("slow", code, limit=1.5)], tmp_path, "code")
    assert state["steps"]["slow"]["status"] == "timed out"
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_a_command_that_is_not_there_is_a_failed_step(tmp_path: Path) -> None:
    state = run_all([Step("absent", [str(tmp_path / "nothing")], 5)], tmp_path, "code")
    assert state["steps"]["absent"]["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inference", "training"])
def test_what_the_timings_launch_can_be_compiled_before(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "bench.gpu_timings", kind, "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, "--compile-only", "float32"], env=environment, cwd=gpu_suite.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "triton float32: compiled" in done.stdout


def test_no_batch_is_larger_than_what_eager_pytorch_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, batch in ((150e9, 12), (85e9, 9), (24e9, 2)):
        properties = argparse.Namespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, p=properties: p)
        assert training_batch(torch.device("cuda")) == batch


def test_the_gpu_tests_need_nothing_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    for name in ("hypothesis", "soundfile", "av", "scipy", "safetensors", "tqdm", "museval", "musdb"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{gpu_suite.ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", *gpu_steps.gpu_tests(), "-q", "-m", "gpu", "--collect-only"]
    found = subprocess.run(command, env=environment, cwd=gpu_suite.ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]


def test_the_short_list_runs_every_backend_of_this_machine() -> None:
    ran = dict(one_pass.passes(torch.device("cpu")))
    assert all(ran.values())
    served = {name for name, found in available_backends().items() if found.available}
    assert {line.split()[0] for line in ran} == served - {"reference"}


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
