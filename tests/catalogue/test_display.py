"""What a person sees while a run goes on."""

from __future__ import annotations

import io

import pytest

from metatasnet_fast.catalogue import Failure, Notice, Outcome, Progress, RunEnded, RunStarted, SongEnded, Status
from metatasnet_fast.catalogue.display import SHOWN, LiveDisplay, clock_text, progress_line, summary_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


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


def test_a_line_says_songs_hours_speed_device_queues_failures_and_time_left() -> None:
    assert progress_line(progress()) == (
        "42/100 songs · 2.00 h of audio · 120.0 x real time · device 83% busy · waiting read 3 device 12 write 0 · "
        "2 failed · 1:02:03 left"
    )


def test_songs_that_were_done_before_are_told_apart() -> None:
    assert "52/100 songs · 10 done before · " in progress_line(progress(skipped=10))


def test_nothing_is_left_at_the_end() -> None:
    assert "left" not in progress_line(progress(98))


def test_a_terminal_shows_one_line_that_rewrites_itself() -> None:
    terminal = Terminal()
    with LiveDisplay(terminal) as show:
        show(progress(1))
        show(progress(2))
        assert terminal.getvalue().count("\n") == 0
        assert terminal.getvalue().rsplit("\x1b[2K", 1)[1].startswith("4/100")
        show(Notice("Memory ran out."))
        assert terminal.getvalue().endswith("\r\x1b[2Kmetatasnet-fast: Memory ran out.\n")
        show(progress(3))
    assert terminal.getvalue().endswith("\r\x1b[2K"), "the line is gone, what follows begins at the left"


def test_a_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    LiveDisplay(terminal)(progress())
    assert len(terminal.getvalue().removeprefix("\r\x1b[2K")) == 39


def test_a_log_gets_a_line_now_and_then() -> None:
    log, clock = io.StringIO(), Clock()
    show = LiveDisplay(log, clock)
    for second in range(60):
        clock.now = float(second)
        show(progress(second))
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 4 and "\x1b" not in log.getvalue()


def test_a_failure_is_said_with_its_song_and_type() -> None:
    log = io.StringIO()
    LiveDisplay(log)(failed(Failure.decode, 3))
    assert log.getvalue() == "metatasnet-fast: error: song-3: It broke 3 times. [decode]\n"


def test_a_thousand_equal_failures_do_not_bury_another() -> None:
    log = io.StringIO()
    show = LiveDisplay(log)
    for number in range(1000):
        show(failed(Failure.not_found, number))
    show(failed(Failure.write, 1))
    assert len(log.getvalue().splitlines()) == SHOWN + 2
    assert log.getvalue().splitlines()[-1].endswith("[write]")


def test_warnings_of_songs_that_were_done_before_are_not_repeated() -> None:
    log = io.StringIO()
    show = LiveDisplay(log)
    show(SongEnded(Outcome("a", "a.mp3", Status.done, "key", warnings=("The end is missing.",))))
    show(SongEnded(Outcome("b", "b.mp3", Status.skipped, "key", warnings=("The end is missing.",))))
    assert log.getvalue() == "metatasnet-fast: warning: a: The end is missing.\n"


def test_the_end_says_what_to_do_about_each_type_of_failure() -> None:
    lines = summary_lines(ended(cost=3.0, cost_per_1000_songs=30.6))
    assert lines[0].startswith("98 done, 0 done before, 2 failed: 2.00 h of audio in 0:01:00, 120.0 x real time")
    assert lines[1] == "cost 3.00, 30.60 per 1,000 songs"
    assert lines[2] == f"2 x decode: {Failure.decode.hint}"


def test_a_stopped_run_says_what_remains_and_how_to_go_on() -> None:
    lines = summary_lines(ended(complete=False, remaining=58))
    assert "58 not tried" in lines[0] and "same command goes on" in lines[-1]


def test_the_beginning_names_the_shard_only_if_there_are_several() -> None:
    log = io.StringIO()
    show = LiveDisplay(log)
    show(RunStarted("r", 7, 0.0, "/stems", "local", "0/1"))
    show(RunStarted("r", 7, 0.0, "/stems", "local", "2/8"))
    assert log.getvalue() == "metatasnet-fast: 7 songs to /stems\nmetatasnet-fast: 7 songs in shard 2/8 to /stems\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (61.4, "0:01:01"), (90061, "1 d 1:01:01")])
def test_times_can_be_read(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
