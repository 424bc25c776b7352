"""The README's table says what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import BEGIN, END, NOTHING, insert, main, markdown, newest
from metatasnet_fast.benchmark import Row, write_rows
from metatasnet_fast.benchmark.results import title

PEAKS = {"copy_bytes_per_s": 1e10, "mm_flop_per_s": {"float32": 1e11}}


def row(implementation: str, seconds: float, date: str = "2020-01-01T00:00:00Z", **changes: object) -> Row:
    found = Row("inference 1x2s", "inference", implementation, "float32", samples=[seconds] * 3, peaks=PEAKS)
    found.errors, found.audio_seconds, found.flops, found.bytes = {"estimate": 1e-6}, 2.0, 1e9, 1e7
    found.speedup = {"reference float32": 1 / seconds}
    found.machine = {"device_name": "a CPU", "device": "cpu", "threads": 2, "commit": "0123456789abcdef", "date": date}
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def report(tmp_path: Path) -> tuple[int, str]:
    arguments = [
        "--results",
        str(tmp_path),
        "--readme",
        str(tmp_path / "README.md"),
        "--picture",
        str(tmp_path / "s.png"),
    ]
    return main(arguments), (tmp_path / "README.md").read_text()


def test_table_comes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_rows([row("reference", 1.0), row("cpu", 0.25)], tmp_path / "run.jsonl")
    code, page = report(tmp_path)
    assert code == 0 and page.startswith(f"before\n{BEGIN}\n") and page.endswith(f"\n{END}\nafter\n")
    assert "old" not in page and "4.00" in page and "2020-01-01" in page and "0123456789" in page
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert report(tmp_path) == (0, page)


def test_a_picture_names_every_commit_that_it_shows() -> None:
    other = row("cpu", 0.25)
    other.machine = {**other.machine, "commit": "fedcba9876543210", "dirty": True}
    assert title([row("reference", 1.0), other]) == (
        "a CPU, 2 threads; 2020-01-01 0123456789, 2020-01-01 fedcba9876 (modified)"
    )


def test_only_what_was_measured_is_shown() -> None:
    assert markdown({}) == NOTHING
    text = markdown(newest([row("reference", 1.0)]))
    assert "training step" not in text
    assert text.count("1.0e-06") == 1


def test_a_failed_parity_shows_its_reason_and_no_number() -> None:
    failed = row("cpu", 0.25)
    failed.refuse("parity failed: estimate")
    (line,) = [line for line in markdown(newest([failed])).splitlines() if "parity" in line]
    assert line == "| inference 1x2s | cpu float32 | parity failed: estimate |  |  |  |  |  |"


def test_of_each_job_the_largest_case_is_shown() -> None:
    small, large = row("cpu", 0.1), row("cpu", 1.0, case="inference 1x30s", audio_seconds=30.0)
    assert newest([large, small]) == {"a CPU, 2 threads": [large]}


def test_the_newest_run_counts() -> None:
    old, new = row("cpu", 0.5), row("cpu", 0.25, date="2021-01-01T00:00:00Z")
    (found,) = newest([new, old]).values()
    assert found == [new]


def test_of_each_kind_of_device_the_one_measured_last_is_shown() -> None:
    def on(device: str, kind: str, year: int) -> Row:
        found = row("reference", 1.0)
        found.machine = {"device_name": device, "device": kind, "threads": 2, "date": f"{year}-01-01T00:00:00Z"}
        return found

    rows = [on("new CPU", "cpu", 2022), on("GPU", "cuda", 2020), on("old CPU", "cpu", 2021)]
    assert sorted(newest(rows)) == ["GPU", "new CPU, 2 threads"]


@pytest.mark.parametrize("page", ["no markers", BEGIN, f"{END} {BEGIN}"])
def test_a_page_without_markers_stays_as_it_is(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(page)
    assert report(tmp_path) == (1, page)
    assert BEGIN in capsys.readouterr().err
    with pytest.raises(ValueError, match="no place"):
        insert(page, "text")
