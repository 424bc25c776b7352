"""Show a run to people: in a live display while it runs, and in a report at its end.

The display is made from the events of the run. The report is written to ``runs/<run>/``: ``report.json`` for programs,
``report.html`` for people, and pages to listen to songs, each a single file. It is made from the run's last event; the
examples and the number of warnings come from the ledger. Rows of the ledger are read one by one, so the memory does not
grow with the ledger.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._extras import require
from .._terminal import ProgressBar
from ..audio import open_audio
from ..errors import AudioReadError, MetaTasNetError
from ..page import listen_to
from .destination import Destination, song_folder
from .events import Event, Notice, Progress, RunEnded, RunStarted, SongEnded, SongsSkipped
from .inputs import Source
from .outcome import Failure, Outcome, Status
from .settings import Settings, safe_name
from .storage import client_errors

__all__ = ["LiveDisplay", "bottleneck", "clock_text", "facts", "page", "progress_note", "summary_lines", "write_report"]

SHOWN = 20
"""Number of failures of each type, and of warnings, that are displayed; the others are only counted."""

HEARD_SECONDS = 30
"""Seconds of a song to listen to, from its beginning. A page of four stems takes about 0.2 MB for each second."""

EXAMPLES = 10
"""Number of failed songs of each type, and of warnings, that the report names."""

SAMPLES = 3
"""Default number of songs to listen to."""

SAMPLE_SECONDS = 2.0
"""Smallest duration in seconds of a song to listen to."""

FORMAT_VERSION = 2


class LiveDisplay(ProgressBar):
    """A listener that shows a run on standard error: progress, failures and warnings, and at the end a summary."""

    def __init__(self) -> None:
        super().__init__("catalogue", "songs")
        self._said: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            shard = "" if event.shard == "1/1" else f" in shard {event.shard}"
            self._say(f"{event.songs} song{'' if event.songs == 1 else 's'}{shard} to {event.destination}")
        elif isinstance(event, SongsSkipped):
            self._say(f"{event.songs} of them are done, by their names and sizes at the destination")
        elif isinstance(event, Notice):
            self._say(event.text)
        elif isinstance(event, SongEnded) and event.outcome.status is Status.failed:
            outcome, failure = event.outcome, (event.outcome.failure or Failure.unknown).value
            self._say(f"error: {outcome.id}: {outcome.error or failure} [{failure}]", failure)
        elif isinstance(event, SongEnded) and event.outcome.status is Status.done:
            for warning in event.outcome.warnings:
                self._say(f"warning: {event.outcome.id}: {warning}", "warning")
        elif isinstance(event, Progress):
            self.update(event.done + event.skipped + event.failed, progress_note(event), event.songs)
        elif isinstance(event, RunEnded):
            self.close()
            for line in summary_lines(event):
                self._say(line)

    def _say(self, text: str, kind: str | None = None) -> None:
        """Print a line. Print only the first SHOWN lines of one ``kind``, then say once that there are more."""
        if kind is not None:
            self._said[kind] += 1
            if self._said[kind] > SHOWN + 1:
                return
            if self._said[kind] > SHOWN:
                text = f"more of the kind {kind} are in the ledger and counted in the report"
        self.write(f"metatasnet-fast: {text}", sys.stderr)


def progress_note(progress: Progress) -> str:
    """Return the progress in one line: hours of audio, real-time factor, share of time in which the device was busy,
    lengths of the queues, failures, and time left."""
    parts = [
        f"{progress.audio_seconds / 3600:.2f} h of audio",
        f"{progress.real_time_factor:.1f} x real time",
        f"device {progress.device_busy_share:.0%} busy",
        "waiting " + " ".join(f"{name} {depth}" for name, depth in progress.queues.items()),
        f"{progress.failed} failed",
    ]
    if progress.skipped:
        parts.insert(0, f"{progress.skipped} done before")
    if progress.eta_seconds:
        parts.append(f"{clock_text(progress.eta_seconds)} left")
    return " · ".join(parts)


def summary_lines(end: RunEnded) -> list[str]:
    """Return the lines of the summary that is shown at the end of a run."""
    progress = end.progress
    lines = [
        f"{progress.done} done, {progress.skipped} done before, {progress.failed} failed"
        + (f", {end.remaining} not tried" if end.remaining else "")
        + f": {progress.audio_seconds / 3600:.2f} h of audio in {clock_text(progress.wall_seconds)}, "
        f"{progress.real_time_factor:.1f} x real time, device {progress.device_busy_share:.0%} busy"
    ]
    if end.cost is not None and end.cost_per_1000_songs is not None:
        lines.append(f"cost {end.cost:.2f}, {end.cost_per_1000_songs:.2f} per 1,000 songs")
    lines += [f"{count} x {name}: {Failure(name).hint}" for name, count in sorted(end.failures.items())]
    if end.reason is not None:
        lines.append(f"The run stopped itself: {end.reason}")
    if not end.complete:
        lines.append("Stopped before the end; the same command goes on with what is missing.")
    return lines


def clock_text(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds, such as ``1:02:03``; with days from 24 hours on."""
    return re.sub(" days?,", " d", str(timedelta(seconds=round(seconds))))


def bottleneck(stage_busy_share: dict[str, float]) -> str | None:
    """Return the name of the busiest stage, for which the other stages wait; None if all stages are idle.

    The stage ``separate`` is left out: ``device`` measures the same work.
    """
    shares = {name: share for name, share in stage_busy_share.items() if name != "separate"}
    return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None


def facts(
    ended: RunEnded, rows: Iterable[Outcome], price_per_hour: float | None = None, samples: int = SAMPLES
) -> dict[str, Any]:
    """Return the whole report in a form for JSON: the run's last event, and examples from the rows of the ledger.

    Args:
        rows: the run's rows of the ledger.
        samples: number of songs to listen to. Each song is equally likely; the choice depends on the songs' ids only.
    """
    progress = ended.progress
    failures: dict[str, dict[str, Any]] = {
        name: {"songs": count, "hint": Failure(name).hint, "examples": []}
        for name, count in sorted(ended.failures.items(), key=lambda item: (-item[1], item[0]))
    }
    warnings: dict[str, Any] = {"number": 0, "examples": []}
    chosen: dict[tuple[int, str], Outcome] = {}

    def add(examples: list[dict[str, Any]], row: Outcome, **what: Any) -> None:
        if len(examples) < EXAMPLES:
            examples.append({"id": row.id, "uri": row.uri, **what})

    for row in rows:
        if row.failure is not None and row.failure.value in failures:
            add(failures[row.failure.value]["examples"], row, error=row.error, attempts=row.attempts)
        for text in row.warnings if row.status is Status.done else ():
            warnings["number"] += 1
            add(warnings["examples"], row, warning=text)
        if row.status is Status.done and row.duration >= SAMPLE_SECONDS:
            chosen[zlib.crc32(row.id.encode()), row.id] = row
            if len(chosen) > samples:
                del chosen[max(chosen)]
    return {
        "format_version": FORMAT_VERSION,
        **ended.to_json(),
        "songs_per_hour": 3600 * progress.done / progress.wall_seconds if progress.wall_seconds > 0 else 0.0,
        "bottleneck": bottleneck(progress.stage_busy_share),
        "price_per_hour": price_per_hour,
        "failures": failures,
        "warnings": warnings,
        "samples": [{"id": row.id, "uri": row.uri, "duration": row.duration} for _, row in sorted(chosen.items())],
    }


def write_report(
    ended: RunEnded,
    destination: Destination,
    settings: Settings,
    price_per_hour: float | None = None,
    samples: int = SAMPLES,
) -> str:
    """Write ``report.json``, ``report.html`` and pages for listening into ``runs/<run>/`` at the destination.

    Args:
        price_per_hour: price of one machine; None if there is no price.
        samples: number of songs that get a page. If a page cannot be made, the report says why.

    Returns:
        the address of ``report.html``.

    Raises:
        OSError: if the destination cannot be written.
    """
    storage, folder = destination.storage, f"runs/{ended.run}"
    said = facts(ended, destination.ledger(ended.run), price_per_hour, samples)
    made_by: dict[str, str] = {"version": __version__}

    def store() -> None:
        said["made_by"] = {
            **made_by,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
        }
        storage.write(f"{folder}/report.json", (json.dumps(said, indent=1) + "\n").encode())
        storage.write(f"{folder}/report.html", page(said).encode(errors="backslashreplace"))

    said["destination"], said["settings"] = destination.uri, asdict(settings)
    store()  # pages take seconds: if a signal comes meanwhile, there is a report without pages
    for sample in said["samples"]:
        name = f"listen-{safe_name(sample['id'])}.html"
        try:
            with client_errors():
                content, made_by = _listening_page(sample, destination)
        except (OSError, MetaTasNetError) as error:
            sample["problem"] = " ".join(str(error).split())
        else:
            storage.write(f"{folder}/{name}", content)
            sample.update(page=name, made_by=made_by)
    if said["samples"]:
        store()
    return f"{destination.uri.rstrip('/')}/{folder}/report.html"


def page(facts: Mapping[str, Any]) -> str:
    """Return the HTML page of a report, made from what :func:`facts` returned."""
    jinja2 = require("jinja2", "The report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(clock=clock_text, money=lambda v: f"{v:,.2f}" if v >= 0.1 or v == 0 else f"{v:.2g}")
    template = resources.files("metatasnet_fast").joinpath("assets/catalogue/report.html").read_text("utf-8")
    text: str = environment.from_string(template).render(
        **{"made_by": {"version": __version__}, "settings": None, **facts}, heard_seconds=HEARD_SECONDS
    )
    return text


def _listening_page(sample: Mapping[str, Any], destination: Destination) -> tuple[bytes, dict[str, str]]:
    """Return the page of a song and its stems; and the version, backend, device and precision that made the stems.

    Raises:
        OSError, MetaTasNetError: if the recording or its stems cannot be read any more, or the page cannot hold these.
    """
    folder = song_folder(sample["id"])
    result = destination.result(folder)
    if result is None:
        raise AudioReadError("Its stems are not at the destination any more.")
    with Source(sample["uri"]).local() as path:
        recording, rate = _beginning(path)
    stems: dict[str, Tensor] = {}
    for stem, file in result.files.items():
        with destination.storage.local(f"{folder}/{file.path}") as path:
            stems[stem] = _beginning(path)[0]
    said = {"Model": result.identity.model_name, **{name.capitalize(): text for name, text in result.made_by.items()}}
    if sample["duration"] > HEARD_SECONDS:
        said["Excerpt"] = f"the first {HEARD_SECONDS} of {sample['duration']:.1f} s"
    with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as scratch:
        path = Path(scratch, "page.html")
        return listen_to(recording, stems, result.id, said, path=path, sample_rate=rate).read_bytes(), result.made_by


def _beginning(path: Path) -> tuple[Tensor, int]:
    """Return the first :data:`HEARD_SECONDS` of a file, (channels, samples), and its sample rate in Hz."""
    with open_audio(path, partial=True) as stream:
        limit, found, length = HEARD_SECONDS * stream.sample_rate, [], 0
        for block in stream:
            found.append(block)
            length += block.shape[1]
            if length >= limit:
                break
        return torch.cat(found, 1)[:, :limit], stream.sample_rate
