"""bench and selftest as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from metatasnet_fast.benchmark import read_rows
from metatasnet_fast.benchmark import selftest as proof
from metatasnet_fast.benchmark.suite import SIZES
from metatasnet_fast.cli.main import main

INFERENCE = ["bench", "--tiny", "--device", "cpu", "--only", "inference"]


def test_bench_prints_a_table_and_records_a_line_for_each_implementation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*INFERENCE, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = read_rows(tmp_path / "bench.jsonl")
    assert {row.implementation for row in rows} >= {"reference"}
    assert {row.job for row in rows} == {"inference"}
    for row in rows:
        assert row.label in out
        assert row.seconds and row.samples and row.errors and row.flops and row.bytes and row.first_call_seconds
        assert row.machine["cpu"] and row.machine["threads"] and row.machine["packages"]["torch"]
        assert {"commit", "dirty", "driver", "command", "date"} <= set(row.machine)
        assert {"cpu_mhz", "load"} <= set(row.clocks_before) and row.clocks_before.keys() == row.clocks_after.keys()
        assert row.peaks["copy_bytes_per_s"] > 0 and row.peaks["mm_flop_per_s"][row.precision] > 0


def test_bench_prints_the_lines_of_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INFERENCE, "--out", str(tmp_path), "--json"]) == 0
    lines = capsys.readouterr().out
    assert lines == (tmp_path / "bench.jsonl").read_text("utf-8")
    row = json.loads(lines.splitlines()[0])
    assert row["case"].startswith("inference") and row["seconds"]["median"] > 0 and row["reason"] is None


def test_without_matplotlib_bench_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*INFERENCE, "--out", str(tmp_path)]) == 0
    assert "warning: no picture was drawn" in (said := capsys.readouterr().err) and "pip install matplotlib" in said
    assert not (tmp_path / "bench.png").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--device", "tpu"], "choose auto, cpu or cuda"),
        (["--threads", "0"], "at least 1"),
        (["--quick", "--tiny"], "not allowed"),
    ],
)
def test_bench_refuses_in_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_case_that_is_not_there_is_answered_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--tiny", "--device", "cpu", "--only", "lunch"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "'lunch'; there are: inference 1x0.4s, " in last and "preparation" in last


def test_quick_leaves_the_compiler_out() -> None:
    assert not SIZES["quick"].compiled and SIZES["full"].compiled


def test_selftest_passes_here_and_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof.selftest, "__defaults__", (None, None, ("other sizes",)))
    assert main(["selftest", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and all(result["passed"] for result in found["results"])
    precisions = {result["precision"] for result in found["results"] if result["backend"] == "reference"}
    assert precisions == {"float64", "float32", "bfloat16", "float16"}
    assert {"silence", "constant", "odd length", proof.TRAINING} <= {result["signal"] for result in found["results"]}


def test_selftest_exits_with_1_where_something_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = proof.Result("cpu", "cpu", "float32", "generated", "music", 1e-3, 3e-6, 1e-6, "stage 2")
    monkeypatch.setattr(proof, "selftest", lambda on: iter([wrong]))
    assert main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: cpu in float32 on cpu, network generated, music, stage 2: 1.00e-03, allowed 3.00e-06" in out


@pytest.mark.slow
def test_every_network_passes_the_selftest_here() -> None:
    assert all(result.passed for result in proof.selftest())


@pytest.mark.slow
def test_two_runs_of_the_same_code_agree(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([*INFERENCE, "--out", str(tmp_path / name)]) == 0
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
