"""Which configuration a kernel is launched with: the nearest that was measured, or the default; and how it is measured."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast.backends import get_backend
from metatasnet_fast.cli import tune
from metatasnet_fast.cli.main import main
from metatasnet_fast.kernels import tuned

DEVICE = "Imaginary GPU 3000"


def entry(options: dict[str, int], precision: str = "bfloat16", **sizes: int) -> dict[str, Any]:
    return {"kernel": "product", "precision": precision, "sizes": sizes, "options": options}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    tuned.load.cache_clear()
    yield tmp_path
    tuned.load.cache_clear()


def test_the_nearest_sizes_are_taken_and_far_ones_say_nothing() -> None:
    entries = (entry({"num_warps": 1}, K=160, N=160), entry({"num_warps": 2}, K=160, N=440))
    for k, n, expected in (
        (160, 160, 1),
        (160, 180, 1),
        (160, 400, 2),
        (100, 440, 2),
        (160, 880, 2),
        (160, 1760, None),
    ):
        assert tuned.nearest(entries, "product", "bfloat16", {"K": k, "N": n}).get("num_warps") == expected
    assert not tuned.nearest(entries, "product", "tf32", {"K": 160, "N": 160})
    assert not tuned.nearest(entries, "other", "bfloat16", {"K": 160, "N": 160})
    assert not tuned.nearest(entries, "product", "bfloat16", {"C": 160})


def test_a_file_of_the_users_own_is_read_and_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [entry({"num_warps": 8}, K=8, N=8)]
    (folder / tuned.file_name(DEVICE)).write_text(json.dumps({"entries": entries}))
    with caplog.at_level(logging.INFO, "metatasnet_fast"):
        for _ in range(3):
            assert list(tuned.load(DEVICE)) == entries
    assert len(caplog.records) == 1 and str(folder) in caplog.text


def test_without_a_file_the_defaults_hold_and_one_line_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "metatasnet_fast"):
        for _ in range(3):
            assert tuned.load(DEVICE) == ()
    assert len(caplog.records) == 1 and "metatasnet-fast tune" in caplog.text


def test_a_damaged_file_is_named_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / tuned.file_name(DEVICE)).write_text("{")
    with caplog.at_level(logging.WARNING, "metatasnet_fast"):
        assert tuned.load(DEVICE) == ()
    assert tuned.file_name(DEVICE) in caplog.text


def test_only_options_that_a_launch_has_are_changed() -> None:
    x, defaults = torch.zeros(1), {"BLOCK_K": 32, "num_warps": 4}
    assert tuned.configuration("product", x, False, defaults, K=8) == defaults
    with tuned.applied("product", {"num_warps": 8, "BLOCK_N": 16}):
        assert tuned.configuration("product", x, False, defaults, K=8) == {"BLOCK_K": 32, "num_warps": 8}
        assert tuned.configuration("other", x, False, defaults, K=8) == defaults
    assert tuned.configuration("product", x, False, defaults, K=8) == defaults


class Imagined:
    """A kernel whose time, result and refusal depend on its number of warps; its own timer."""

    method = "imagined"

    def __init__(self, seconds: dict[int, float], wrong: int = 0, refused: int = 0) -> None:
        self.seconds, self.wrong, self.refused = seconds, wrong, refused
        self.kernel, self.sizes = "product", {"K": 8, "N": 8}
        self.candidates = tuple({"num_warps": warps} for warps in seconds)
        self.noise = itertools.cycle([1.0, 1.01, 0.99])

    def warps(self) -> int:
        return tuned.configuration("product", torch.zeros(1), False, {"num_warps": 4}, K=8, N=8)["num_warps"]

    def run(self) -> torch.Tensor:
        if self.warps() == self.refused:
            raise RuntimeError("out of shared memory")
        return torch.ones(3) * (2 if self.warps() == self.wrong else 1)

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        function()
        seen: list[int] = []
        self.run, kept = lambda: seen.append(self.warps()) or torch.ones(3), self.run  # type: ignore[method-assign]
        function()
        self.run = kept  # type: ignore[method-assign]
        return self.seconds[seen[0]] * next(self.noise), None


@pytest.mark.parametrize(
    ("imagined", "expected"),
    [
        (Imagined({4: 2.0, 8: 1.0, 2: 3.0}), {"num_warps": 8}),
        (Imagined({4: 2.0, 8: 1.99}), None),
        (Imagined({4: 2.0, 8: 1.0, 2: 1.5}, wrong=8), {"num_warps": 2}),
        (Imagined({4: 2.0, 8: 1.0}, refused=8), None),
    ],
    ids=["fastest", "noise", "wrong", "refused"],
)
def test_what_is_faster_right_and_possible_is_kept(imagined: Imagined, expected: dict[str, int] | None) -> None:
    said: list[str] = []
    found = tune.tune_subject(imagined, imagined, 5, said.append)  # type: ignore[arg-type]
    assert (found and found["options"]) == expected
    assert said


class Subjects:
    """Three kernels that each take ten seconds to measure; the second gains nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self.fails_at: int | None = None
        backend = get_backend("triton")
        monkeypatch.setattr(type(backend), "unavailable", lambda self: None)
        monkeypatch.setattr(type(backend), "supports", lambda self, request: None)
        monkeypatch.setattr(tune.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(tune, "tune_subject", self.measure)
        monkeypatch.setattr(
            "metatasnet_fast.kernels.tuned.subjects",
            lambda *_: (argparse.Namespace(kernel="product", sizes={"K": k, "N": k}) for k in (8, 16, 32)),
        )

    def measure(self, subject: Any, timer: Any, rounds: int, say: Callable[[str], None]) -> dict[str, Any] | None:
        self.clock += 10
        width = subject.sizes["K"]
        if width == self.fails_at:
            raise RuntimeError("the GPU is gone")
        options = {"num_warps": width}
        return None if width == 16 else {"kernel": "product", "sizes": subject.sizes, "options": options}


def tuned_sizes(path: Path) -> list[tuple[str, int, int]]:
    entries = json.loads(path.read_text())["entries"]
    return [(e["precision"], e["sizes"]["K"], e["options"]["num_warps"]) for e in entries]


def test_what_was_measured_anew_is_replaced_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deeper" / "file.json"
    Subjects(monkeypatch)
    old = [entry({"num_warps": 1}, precision, K=k, N=k) for precision in ("tf32", "bfloat16") for k in (8, 16, 64)]
    tune.write(path, DEVICE, old, "tf32", argparse.Namespace(items=1, frames=2))
    assert main(["tune", "--device", "cpu", "--out", str(path)]) == 0
    assert tuned_sizes(path) == [
        *(("tf32", k, 1) for k in (8, 16, 64)),
        ("bfloat16", 64, 1),
        ("bfloat16", 8, 8),
        ("bfloat16", 32, 32),
    ]
    assert "tune" in json.loads(path.read_text())["command"]


def test_time_that_runs_out_and_a_failure_leave_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, gone = tmp_path / "short.json", tmp_path / "gone.json"
    subjects = Subjects(monkeypatch)
    assert main(["tune", "--device", "cpu", "--seconds", "9", "--out", str(path)]) == 0
    assert tuned_sizes(path) == [("bfloat16", 8, 8)]
    assert "2 kernels were left out after 9 s" in capsys.readouterr().out
    assert main(["tune", "--device", "cpu", "--json", "--seconds", "9", "--out", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    entries = json.loads(path.read_text())["entries"]
    assert json.loads(line) == {
        "device": "cpu",
        "precision": "bfloat16",
        "file": str(path),
        "measured": 1,
        "faster": 1,
        "skipped": 2,
        "entries": entries,
    }
    subjects.fails_at = 32
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        main(["tune", "--device", "cpu", "--out", str(gone)])
    assert tuned_sizes(gone) == [("bfloat16", 8, 8)]


def test_a_file_of_something_else_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    path.write_text("a diary")
    subjects = Subjects(monkeypatch)
    assert main(["tune", "--device", "cpu", "--out", str(path)]) == 2
    assert "is no file of tuned configurations" in capsys.readouterr().err
    assert path.read_text() == "a diary" and subjects.clock == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_why_there_is_nothing_to_tune(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["tune"]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    assert main(["tune", "--rounds", "0"]) == 2
