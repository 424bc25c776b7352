"""The report at the end of a run: numbers that add up, in memory that does not grow with the ledger."""

from __future__ import annotations

import contextlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast import __version__
from metatasnet_fast.catalogue import Failure, Outcome, Progress, RunEnded, Status
from metatasnet_fast.catalogue.destination import Destination, LedgerWriter
from metatasnet_fast.catalogue.report import EXAMPLES, bottleneck, facts, page, write_report
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, songs_of, write_song
from .stand_ins import SleepingDevice


def ended(**other: Any) -> RunEnded:
    shares = {"read": 0.3, "separate": 1.0, "write": 0.95, "device": 0.6}
    progress = Progress(
        songs=12,
        done=8,
        skipped=1,
        failed=3,
        in_flight=0,
        audio_seconds=7200.0,
        wall_seconds=360.0,
        device_busy_share=0.6,
        queues={},
        stage_seconds={name: 360 * share for name, share in shares.items()},
        stage_busy_share=shares,
        eta_seconds=None,
        cpu_seconds=700.0,
        peak_memory=2**30,
        bytes_in=3 * 10**9,
        bytes_out=9 * 10**9,
    )
    values = {
        "run": "r1",
        "complete": True,
        "remaining": 0,
        "progress": progress,
        "failures": {"empty": 1, "decode": 2},
    }
    return RunEnded(**{**values, **other})


def done(number: int, duration: float = 100.0, **other: Any) -> Outcome:
    time = f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z"
    return Outcome(f"song-{number}", f"{number}.mp3", Status.done, "k", duration=duration, finished=time, **other)


def failed(number: int, failure: Failure) -> Outcome:
    return Outcome(f"bad-{number}", f"{number}.mp3", Status.failed, "k", failure, "It is <b>broken</b>.")


def test_numbers_are_those_of_the_run() -> None:
    said = facts(ended(), [])
    assert said["progress"]["done"] == 8 and said["remaining"] == 0 and said["songs_per_hour"] == 80.0
    assert said["progress"]["real_time_factor"] == 20.0 and said["progress"]["stage_seconds"]["device"] == 216.0
    assert said["cost"] is None and said["bottleneck"] == "write"


def test_a_run_without_a_song_divides_nothing_by_zero() -> None:
    nothing = Progress(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, {}, {}, {}, None)
    said = facts(ended(progress=nothing, failures={}), [])
    assert said["songs_per_hour"] == 0.0 and said["bottleneck"] is None
    assert "<title>Catalogue run r1" in page(said)


def test_the_bottleneck_is_the_busiest_stage_and_waiting_for_the_device_is_none() -> None:
    assert bottleneck({"read": 0.3, "separate": 1.0, "write": 0.95, "device": 0.6}) == "write"
    assert bottleneck({"read": 0.3, "separate": 1.0, "write": 0.2, "device": 0.9}) == "device"
    assert bottleneck({"read": 0.0, "write": 0.0}) is None


def test_failures_are_listed_by_number_with_hint_and_examples() -> None:
    rows = [failed(1, Failure.decode), failed(2, Failure.empty), failed(3, Failure.decode)]
    said = facts(ended(), rows)["failures"]
    assert list(said) == ["decode", "empty"]
    assert said["decode"]["songs"] == 2 and said["decode"]["hint"] == Failure.decode.hint
    assert [example["id"] for example in said["decode"]["examples"]] == ["bad-1", "bad-3"]


def test_examples_do_not_grow_with_the_ledger() -> None:
    rows = (failed(i, Failure.decode) if i % 2 else done(i, warnings=("odd",)) for i in range(5000))
    said = facts(ended(), rows)
    assert len(said["failures"]["decode"]["examples"]) == len(said["warnings"]["examples"]) == EXAMPLES
    assert said["warnings"]["number"] == 2500


def test_samples_are_the_same_for_the_same_songs_in_any_order() -> None:
    rows = [done(i) for i in range(50)] + [done(1000, duration=0.5)]
    chosen = facts(ended(), rows)["samples"]
    assert len(chosen) == 3 and chosen == facts(ended(), reversed(rows))["samples"]
    assert all(sample["duration"] >= 2 for sample in chosen)
    assert len(facts(ended(), rows, samples=9)["samples"]) == 9 and facts(ended(), rows, samples=0)["samples"] == []


class Page(HTMLParser):
    """Counts elements, and refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def text() -> str:
    rows = [failed(1, Failure.decode), *(done(i, warnings=("<odd>",)) for i in range(8))]
    said = facts(ended(cost=4.0, cost_per_1000_songs=500.0), rows, 40.0)
    json.dumps(said, allow_nan=False)
    said["made_by"] = {"version": "1", "backend": "<tiny>", "device": "cpu", "precision": "float32"}
    said["samples"] = [
        {"id": "song & co", "duration": 12.0, "page": "listen-song?.html", "made_by": said["made_by"]},
        {"id": "lost", "duration": 61.0, "problem": "There is no file <lost>."},
    ]
    return page(said)


def test_the_page_is_whole_and_needs_no_network(text: str) -> None:
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.sources == ["listen-song%3F.html"]
    assert "http" not in text and "{{" not in text


def test_the_page_says_what_served(text: str) -> None:
    assert (
        "Backend</dt><dd>&lt;tiny&gt;" in text and "Precision</dt><dd>float32" in text and "Version</dt><dd>1" in text
    )


def test_a_run_that_stopped_itself_says_why() -> None:
    assert "stopped itself: The disk is &lt;full&gt;" in page(facts(ended(reason="The disk is <full>"), []))


def test_names_and_messages_are_text_not_html(text: str) -> None:
    assert "&lt;b&gt;broken&lt;/b&gt;" in text and "&lt;odd&gt;" in text
    assert "song &amp; co" in text and "&lt;tiny&gt;" in text
    assert "backend &lt;tiny&gt;, device cpu, float32, version 1" in text
    assert "there is no page: There is no file &lt;lost&gt;." in text


def test_the_page_says_what_a_thousand_songs_cost(text: str) -> None:
    assert "Cost of 1,000 songs</dt><dd>500.00" in text


def test_a_song_that_is_done_can_be_heard_beside_its_recording(
    small_windows: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    songs = songs_of(*(write_song(tmp_path / f"{i}.wav", 2.5, seed=i) for i in range(2)))
    out, options = Destination(str(tmp_path / "out")), settings(Path("no model"))
    with (
        Worker(options, out, engine=SleepingDevice()) as worker,
        contextlib.closing(LedgerWriter(out, "r1")) as ledger,
    ):
        for outcome in worker.process(songs):
            ledger.add(outcome)
    Path(songs[1].uri).unlink()
    report = Path(write_report(ended(), out, options))
    said = json.loads(report.with_name("report.json").read_text())
    heard, lost = sorted(said["samples"], key=lambda sample: str(sample["id"]))
    assert heard["page"] == "listen-0.html" and "There is no file" in lost["problem"]
    text = report.with_name(heard["page"]).read_text()
    assert text.count("data:audio/mpeg") == 5
    for fact in ("SleepingDevice", "cpu", "float32", __version__):
        assert f">{fact}<" in text
    assert heard["page"] in Page(report.read_text()).sources
    assert len(list(report.parent.glob("listen-*"))) == 1

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metatasnet_fast.catalogue.report._listening_page", interrupted)
    report.unlink()
    with pytest.raises(KeyboardInterrupt):
        write_report(ended(), out, options)
    assert "listen-" not in report.read_text()  # a report without pages is there before them
