"""The report of a run, beside its ledger: ``report.json`` for machines, ``report.html`` for people.

Numbers come from the end of the run, examples from its ledger, in memory that does not grow with it. The page needs no other
file, except for listening: it plays the stems of a few songs from where they lie.
"""

from __future__ import annotations

import base64
import heapq
import json
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._extras import require
from ..audio import open_audio
from ..errors import MetaTasNetError
from ..page.png import encode_png
from ..page.spectrogram import levels
from .destination import Destination, song_folder
from .display import clock_text
from .events import RunEnded
from .failures import Failure
from .result import Outcome, Result, Status
from .settings import Settings

__all__ = ["Pictured", "bottleneck", "choose", "facts", "page", "write_report"]

PICTURE_ROWS, PICTURE_COLUMNS = 110, 420
SHOWN_SECONDS = 60
"""Seconds of a song to listen to, from its beginning."""

EXAMPLES = 10
"""Failed songs of each type, and warnings, that are named."""

PICTURED = 3
"""Songs to look at and listen to."""

PICTURED_SECONDS = 2.0
"""Shorter songs make no picture worth looking at."""

FORMAT_VERSION = 1


def bottleneck(stage_busy_share: dict[str, float]) -> str | None:
    """The stage that is busiest: the others wait for it. ``separate`` is songs with the device, which is judged itself."""
    shares = {
        name: share for name, share in stage_busy_share.items() if name != "separate" or len(stage_busy_share) == 1
    }
    return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None


def facts(ended: RunEnded, rows: Iterable[Outcome], price_per_hour: float | None = None) -> dict[str, Any]:
    """Return the whole report, ready for JSON: the run's last event, and examples from its rows."""
    progress = ended.progress
    failures: dict[str, dict[str, Any]] = {
        name: {"songs": count, "hint": Failure(name).hint, "examples": []}
        for name, count in sorted(ended.failures.items(), key=lambda item: (-item[1], item[0]))
    }
    warnings: dict[str, Any] = {"number": 0, "examples": []}
    for row in rows:
        found: list[tuple[list[Any], dict[str, Any]]] = [
            (warnings["examples"], {"warning": text}) for text in row.warnings if row.status is Status.done
        ]
        warnings["number"] += len(found)
        if row.failure is not None and row.failure.value in failures:
            found.append((failures[row.failure.value]["examples"], {"error": row.error, "attempts": row.attempts}))
        for examples, what in found:
            if len(examples) < EXAMPLES:
                examples.append({"id": row.id, "uri": row.uri, **what})
    shares = {**progress.stage_busy_share, "device": progress.device_busy_share}
    return {
        "format_version": FORMAT_VERSION,
        **ended.to_json(),
        "songs_per_hour": 3600 * progress.done / progress.wall_seconds if progress.wall_seconds > 0 else 0.0,
        "bottleneck": bottleneck(shares),
        "price_per_hour": price_per_hour,
        "failures": failures,
        "warnings": warnings,
    }


def choose(rows: Iterable[Outcome]) -> list[Outcome]:
    """Return a few songs to look at and listen to: any song is as likely as another, and the same run has the same ones."""
    long = (row for row in rows if row.status is Status.done and row.duration >= PICTURED_SECONDS)
    return heapq.nsmallest(PICTURED, long, key=lambda row: (zlib.crc32(row.id.encode()), row.id))


@dataclass(frozen=True)
class Pictured:
    """A song to look at and listen to."""

    song: str
    duration: float
    stems: Sequence[tuple[str, str, str]]
    """Name, picture and audio of each, as addresses."""
    made_by: Mapping[str, str]
    """Version, backend, device and precision."""


def write_report(
    ended: RunEnded, destination: Destination, settings: Settings, price_per_hour: float | None = None
) -> str:
    """Write ``runs/<run>/report.json`` and ``report.html`` to the destination, and return the page's address.

    Raises ``OSError`` if the destination refuses.
    """
    storage = destination.storage
    said = facts(ended, destination.ledger(ended.run), price_per_hour)
    samples = [_pictured(row, destination) for row in choose(destination.ledger(ended.run))]
    pictured = [song for song in samples if song is not None]
    said["samples"] = [song.song for song in pictured]
    said["destination"], said["settings"] = storage.root, asdict(settings)
    said["made_by"] = {
        **(pictured[0].made_by if pictured else {"version": __version__}),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    folder = f"runs/{ended.run}"
    storage.write(f"{folder}/report.json", (json.dumps(said, indent=1) + "\n").encode())
    storage.write(f"{folder}/report.html", page(said, pictured).encode(errors="backslashreplace"))
    return f"{storage.root.rstrip('/')}/{folder}/report.html"


def page(facts: Mapping[str, Any], pictured: Sequence[Pictured] = ()) -> str:
    """Return HTML of what :func:`facts` says."""
    jinja2 = require("jinja2", "The report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(clock=clock_text, money=lambda v: f"{v:,.2f}" if v >= 0.1 or v == 0 else f"{v:.2g}")
    template = resources.files("metatasnet_fast").joinpath("assets/catalogue/report.html").read_text("utf-8")
    text: str = environment.from_string(template).render(
        **{"made_by": {"version": __version__}, "settings": None, **facts}, pictured=pictured
    )
    return text


def _pictured(row: Outcome, destination: Destination) -> Pictured | None:
    """The stems of a song that is done, on one scale; None if they are not to be had any more."""
    folder = song_folder(row.id)
    try:
        result: Result | None = destination.result(row.id)
        if result is None:
            return None
        signals: dict[str, Tensor] = {}
        for stem, file in result.files.items():
            with destination.storage.local(f"{folder}/{file.path}") as path, open_audio(path) as stream:
                rate = stream.sample_rate
                signals[stem] = _beginning(stream, SHOWN_SECONDS * rate)
    except (OSError, MetaTasNetError):
        return None
    stems = [
        (
            stem,
            f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}",
            f"../../{folder}/{result.files[stem].path}",
        )
        for stem, picture in levels(signals, rate, PICTURE_ROWS, PICTURE_COLUMNS).items()
    ]
    return Pictured(row.id, row.duration, stems, result.made_by)


def _beginning(blocks: Iterable[Tensor], limit: int) -> Tensor:
    """(channels, samples) of the first ``limit`` samples."""
    found: list[Tensor] = []
    length = 0
    for block in blocks:
        found.append(block)
        length += block.shape[1]
        if length >= limit:
            break
    return torch.cat(found, 1)[:, :limit]
