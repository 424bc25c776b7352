"""What a person sees while a run goes on."""

from __future__ import annotations

import itertools
import re

import pytest

from metatasnet_fast import _terminal
from metatasnet_fast.catalogue import Event, Failure, Outcome, Progress, RunEnded, RunStarted, SongEnded, Status
from metatasnet_fast.catalogue.report import SHOWN, LiveDisplay, clock_text, progress_note, summary_lines


def progress(done: int = 40, **other: object) -> Progress:
    values = {
        "songs": 100,
        "done": done,
        "skipped": 0,
        "failed": 2,
        "in_flight": 4,
        "audio_seconds": 7200.0,
        "wall_seconds": 60.0,
        "device_busy_share": 0.83,
        "queues": {"read": 3, "device": 12, "write": 0},
        "stage_seconds": {},
        "stage_busy_share": {},
        "eta_seconds": 3723.0,
    }
    return Progress(**{**values, **other})  # type: ignore[arg-type]


def ended(**other: object) -> RunEnded:
    values = {"run": "r", "complete": True, "remaining": 0, "progress": progress(98), "failures": {"decode": 2}}
    return RunEnded(**{**values, **other})  # type: ignore[arg-type]


def failed(failure: Failure, number: int) -> SongEnded:
    return SongEnded(Outcome(f"song-{number}", "x", Status.failed, "key", failure, f"It broke {number} times."))


def test_a_line_says_hours_speed_device_queues_failures_and_time_left() -> None:
    assert progress_note(progress()) == (
        "2.00 h of audio · 120.0 x real time · device 83% busy · waiting read 3 device 12 write 0 · "
        "2 failed · 1:02:03 left"
    )


def test_songs_that_were_done_before_are_told_apart() -> None:
    assert progress_note(progress(skipped=10)).startswith("10 done before · ")


def test_nothing_is_left_at_the_end() -> None:
    assert "left" not in progress_note(progress(98, eta_seconds=0.0))


def said(capsys: pytest.CaptureFixture[str], *events: Event) -> list[str]:
    with LiveDisplay() as show:
        for event in events:
            show(event)
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: float(next(now)))
    lines = said(capsys, *(progress(second) for second in range(50)))
    assert 3 <= len(lines) <= 6 and re.fullmatch("catalogue: [0-9]+ of 100 songs, 2.00 h of audio .* left", lines[0])


def test_a_failure_is_said_with_its_song_and_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, failed(Failure.decode, 3)) == ["metatasnet-fast: error: song-3: It broke 3 times. [decode]"]


def test_a_thousand_equal_failures_do_not_bury_another(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, *(failed(Failure.not_found, number) for number in range(1000)), failed(Failure.write, 1))
    assert len(lines) == SHOWN + 2 and lines[-1].endswith("[write]")


def test_warnings_of_songs_that_were_done_before_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    done = SongEnded(Outcome("a", "a.mp3", Status.done, "key", warnings=("The end is missing.",)))
    before = SongEnded(Outcome("b", "b.mp3", Status.skipped, "key", warnings=("The end is missing.",)))
    assert said(capsys, done, before) == ["metatasnet-fast: warning: a: The end is missing."]


def test_the_end_says_what_to_do_about_each_type_of_failure() -> None:
    lines = summary_lines(ended(cost=3.0, cost_per_1000_songs=30.6))
    assert lines[0].startswith("98 done, 0 done before, 2 failed: 2.00 h of audio in 0:01:00, 120.0 x real time")
    assert lines[1] == "cost 3.00, 30.60 per 1,000 songs"
    assert lines[2] == f"2 x decode: {Failure.decode.hint}"


def test_a_stopped_run_says_what_remains_and_how_to_go_on() -> None:
    lines = summary_lines(ended(complete=False, remaining=58))
    assert "58 not tried" in lines[0] and "same command goes on" in lines[-1]


def test_the_beginning_names_the_shard_only_if_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [RunStarted("r", 7, 0.0, "/stems", "local", shard) for shard in ("1/1", "2/8")]
    assert said(capsys, *runs) == [
        "metatasnet-fast: 7 songs to /stems",
        "metatasnet-fast: 7 songs in shard 2/8 to /stems",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (61.4, "0:01:01"), (90061, "1 d 1:01:01")])
def test_times_can_be_read(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
