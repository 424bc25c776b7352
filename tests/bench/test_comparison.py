"""Regressions beyond the noise are told, noise is not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from metatasnet_fast.benchmark import Row, compare, comparison_table, read_rows, write_rows
from metatasnet_fast.benchmark.machine import Spread
from metatasnet_fast.benchmark.results import LEAST, noise_band
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import ConfigError

MACHINE = {"device_name": "a CPU", "cpu": "a CPU", "cores": 2, "threads": 2, "date": "2020-01-01T00:00:00Z"}


def row(implementation: str = "cpu", factor: float = 1.0, noise: float = 0.02, seed: int = 0, **changes: object) -> Row:
    """Ten rounds around one second, of which ``implementation`` needs half."""
    draw = random.Random(seed)
    samples = [0.5 * factor * (1 + noise * draw.uniform(-1, 1)) for _ in range(10)]
    found = Row("inference 1x2s", "inference", implementation, "float32", samples=samples, machine=dict(MACHINE))
    found.relative = list(samples)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def problems(first: list[Row], second: list[Row]) -> list[str]:
    return [change.problem for change in compare(first, second) if change.problem]


def test_the_same_run_twice_is_no_regression() -> None:
    assert problems([row()], [row()]) == []


def test_two_runs_within_their_noise_are_no_regression() -> None:
    assert problems([row(noise=0.1, seed=1)], [row(noise=0.1, seed=2, factor=1.05)]) == []


def test_a_tenth_slower_in_quiet_runs_is_a_regression() -> None:
    (problem,) = problems([row()], [row(factor=1.1, seed=1)])
    assert "slower" in problem


def test_a_tenth_slower_in_noisy_runs_is_noise() -> None:
    assert problems([row(noise=0.3)], [row(noise=0.3, factor=1.1, seed=1)]) == []


def test_a_tenth_slower_on_a_crowded_machine_is_noise() -> None:
    """Four processes a core."""
    busy = {"load": 8.0}
    assert problems([row(clocks_before=busy)], [row(factor=1.1, clocks_after=busy, seed=1)]) == []


def test_a_faster_second_run_is_none() -> None:
    (change,) = compare([row()], [row(factor=0.5)])
    assert change.problem is None and "faster" in comparison_table([change])


def test_a_slower_machine_is_no_regression_where_eager_slowed_down_alike() -> None:
    """Seconds double, the time relative to eager stays."""
    slow = row()
    slow.samples = [2 * seconds for seconds in slow.samples]
    assert problems([row()], [slow]) == []


def test_eager_itself_counts_in_seconds_only_if_asked_for_and_on_the_same_machine() -> None:
    here, slower = row("reference"), row("reference", factor=2)
    (change,) = compare([here], [slower])
    assert change.problem is None and "not counted" in comparison_table([change])
    (change,) = compare([here], [slower], count_seconds=True)
    assert change.problem and "100 % slower" in change.problem
    slower.machine["threads"] = 1
    (change,) = compare([here], [slower], count_seconds=True)
    assert change.problem is None and change.what == "measured on different machines"


def test_a_lost_parity_is_a_regression() -> None:
    failed = row()
    failed.refuse("parity failed: estimate has relative error 1.0e-02, allowed is 3.0e-06")
    assert problems([row()], [failed]) == [failed.reason]
    assert problems([failed], [row()]) == []


def test_more_memory_is_a_regression() -> None:
    method = "VmHWM after a reset"
    small, large = (row(peak_bytes=size << 20, peak_method=method) for size in (100, 150))
    (problem,) = problems([small], [large])
    assert "from 100 to 150 MiB" in problem
    assert problems([large], [small]) == []


@pytest.mark.parametrize("rounds", [5, 10, 20])
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_less_than_one_in_a_hundred_pairs_of_like_runs_are_called_different(rounds: int, noise: float) -> None:
    """Log-normal samples, one in ten half as long again."""
    draw = random.Random(1)

    def run() -> Spread:
        return Spread.of([draw.lognormvariate(0, noise) * (1.5 if draw.random() < 0.1 else 1) for _ in range(rounds)])

    pairs = [(run(), run()) for _ in range(2000)]
    wrong = sum(b.median / a.median > 1 + noise_band(a, b) for a, b in pairs)
    assert wrong < 20


def test_the_band_has_a_floor() -> None:
    exact = Spread.of([1.0] * 10)
    assert noise_band(exact, exact) == LEAST


def test_rows_survive_their_file(tmp_path: Path) -> None:
    rows = [row(errors={"estimate": 1e-6}, limits={"estimate": 3e-6}), row("reference", peak_bytes=5)]
    write_rows(rows, tmp_path / "run" / "bench.jsonl")
    assert read_rows(tmp_path / "run" / "bench.jsonl") == rows == read_rows(tmp_path / "run")


@pytest.mark.parametrize("text", ["{}", "not json", '{"format": 99}', '{"format": 1, "case": "a"}'])
def test_a_file_that_is_no_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text(text + "\n")
    with pytest.raises(ConfigError, match="bench.jsonl, line 1"):
        read_rows(tmp_path)


def test_exit_code_tells_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([row()], tmp_path / "a.jsonl")
    write_rows([row(factor=1.5)], tmp_path / "b.jsonl")
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert main(["bench", "compare", a, a]) == 0
    assert main(["bench", "compare", a, b]) == 1
    assert "REGRESSION: 50 % slower" in capsys.readouterr().out
    assert main(["bench", "compare", a, b, "--json"]) == 1
    (change,) = map(json.loads, capsys.readouterr().out.splitlines())
    key = row().key
    assert (change["case"], change["implementation"], change["precision"]) == key and "50 % slower" in change["problem"]
    assert change["ratio"] == pytest.approx(1.5) and change["band"] < 0.5 and change["what"] == "time over eager"
    assert main(["bench", "compare", a, str(tmp_path / "absent.jsonl")]) == 2
