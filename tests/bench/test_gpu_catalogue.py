"""The catalogue's benchmark runs on a CPU with a small network, and its rows hold what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_catalogue

pytest.importorskip("soundfile")
pytest.importorskip("safetensors")


def test_the_program_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_catalogue.main(["--device", "cpu", "--backend", "reference", "--tiny", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "catalogue.jsonl").read_text().splitlines()]
    assert [row["outputs"] for row in rows] == ["discarded", "flac", "out of memory"]
    for row in rows:
        assert row["songs"] == 3 and not row["failed"]
        assert row["audio_hours"] == pytest.approx(6 / 3600)
        assert 0 < row["device_busy_share"] <= 1.01
        assert row["windows"] == 6 and row["machine"]["device"] == "cpu"
    assert not rows[0]["halvings"] and rows[2]["batch_size"] == 1
    assert "halved" in capsys.readouterr().out


def test_what_speaks_against_a_run_is_said(tmp_path: Path) -> None:
    row = gpu_catalogue.Row(
        "discarded", 1, 1.0, 1.0, 1.0, 0.5, {}, {}, 1, 1, [], ["a: bad"], 1.0, 1, 1, "", {"device": "cuda"}
    )
    assert len(gpu_catalogue.problems([row])) == 2
