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
from dataclasses import dataclass, field
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

__all__ = ["LedgerFacts", "Pictured", "bottleneck", "facts", "page", "write_report"]

PICTURE_ROWS, PICTURE_COLUMNS = 110, 420
SHOWN_SECONDS = 60
"""Seconds of a song to listen to, from its beginning."""

EXAMPLES = 10
"""Failed songs of each type, and warnings, that are named."""

PICTURED_SECONDS = 2.0
"""Shorter songs make no picture worth looking at."""

FORMAT_VERSION = 1


@dataclass
class LedgerFacts:
    """Examples from the rows of a run."""

    pictured: int = 3
    failures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: int = 0
    warning_examples: list[dict[str, Any]] = field(default_factory=list)
    _samples: list[tuple[int, str, Outcome]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Outcome], pictured: int = 3) -> LedgerFacts:
        result = cls(pictured)
        for row in rows:
            result.add(row)
        return result

    def add(self, row: Outcome) -> None:
        if row.status is Status.failed:
            examples = self.failures.setdefault((row.failure or Failure.unknown).value, [])
            if len(examples) < EXAMPLES:
                examples.append({"id": row.id, "uri": row.uri, "error": row.error, "attempts": row.attempts})
            return
        if row.status is Status.skipped:
            return
        for warning in row.warnings:
            self.warnings += 1
            if len(self.warning_examples) < EXAMPLES:
                self.warning_examples.append({"id": row.id, "uri": row.uri, "warning": warning})
        if row.duration >= PICTURED_SECONDS:
            # The smallest checksums: any song is as likely as another, and the same run has the same samples.
            heapq.heappush(self._samples, (-zlib.crc32(row.id.encode()), row.id, row))
            if len(self._samples) > self.pictured:
                heapq.heappop(self._samples)

    @property
    def samples(self) -> list[Outcome]:
        """Songs to look at."""
        return [row for _, _, row in sorted(self._samples, reverse=True)]


def bottleneck(stage_busy_share: dict[str, float]) -> str | None:
    """The stage that is busiest: the others wait for it. ``separate`` is songs with the device, which is judged itself."""
    shares = {
        name: share for name, share in stage_busy_share.items() if name != "separate" or len(stage_busy_share) == 1
    }
    return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None


def facts(ended: RunEnded, ledger: LedgerFacts, price_per_hour: float | None = None) -> dict[str, Any]:
    """Return the whole report, ready for JSON."""
    progress = ended.progress
    hours = progress.wall_seconds / 3600
    shares = {**progress.stage_busy_share, "device": progress.device_busy_share}
    return {
        "format_version": FORMAT_VERSION,
        "run": ended.run,
        "complete": ended.complete,
        "reason": ended.reason,
        "songs": {
            "listed": progress.songs,
            "done": progress.done,
            "done_before": progress.skipped,
            "failed": progress.failed,
            "not_tried": ended.remaining,
        },
        "audio_hours": progress.audio_seconds / 3600,
        "wall_seconds": progress.wall_seconds,
        "real_time_factor": progress.real_time_factor,
        "songs_per_hour": progress.done / hours if hours > 0 else 0.0,
        "device_busy_share": progress.device_busy_share,
        "stages": {
            name: {"busy_share": share, "seconds": progress.stage_seconds.get(name, 0.0)}
            for name, share in shares.items()
        },
        "bottleneck": bottleneck(shares),
        "cpu_seconds": progress.cpu_seconds,
        "peak_memory": progress.peak_memory,
        "bytes_in": progress.bytes_in,
        "bytes_out": progress.bytes_out,
        "cost": None
        if ended.cost is None
        else {"price_per_hour": price_per_hour, "total": ended.cost, "per_1000_songs": ended.cost_per_1000_songs},
        "failures": {
            name: {"songs": count, "hint": Failure(name).hint, "examples": ledger.failures.get(name, [])}
            for name, count in sorted(ended.failures.items(), key=lambda item: (-item[1], item[0]))
        },
        "warnings": {"number": ledger.warnings, "examples": ledger.warning_examples},
        "samples": [row.id for row in ledger.samples],
    }


@dataclass(frozen=True)
class Pictured:
    """A song to look at and listen to: by stem a PNG file and the address of the audio, relative to the page."""

    song: str
    duration: float
    images: Mapping[str, bytes]
    audio: Mapping[str, str]
    made_by: Mapping[str, str]
    """Version, backend, device and precision."""

    @property
    def stems(self) -> list[tuple[str, str, str]]:
        """Name, image and audio of each, as a page takes them."""
        coded = {stem: base64.b64encode(image).decode("ascii") for stem, image in self.images.items()}
        return [(stem, f"data:image/png;base64,{image}", self.audio[stem]) for stem, image in coded.items()]


def write_report(
    ended: RunEnded, destination: Destination, settings: Settings, price_per_hour: float | None = None
) -> str:
    """Write ``runs/<run>/report.json`` and ``report.html`` to the destination, and return the page's address.

    Raises ``OSError`` if the destination refuses.
    """
    storage = destination.storage
    ledger = LedgerFacts.of(destination.ledger(ended.run))
    said = facts(ended, ledger, price_per_hour)
    pictured = [song for song in (_pictured(row, destination) for row in ledger.samples) if song is not None]
    said["destination"], said["settings"] = storage.root, settings.to_dict()
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
    images = {
        stem: encode_png(picture) for stem, picture in levels(signals, rate, PICTURE_ROWS, PICTURE_COLUMNS).items()
    }
    audio = {stem: f"../../{folder}/{file.path}" for stem, file in result.files.items()}
    return Pictured(row.id, row.duration, images, audio, result.made_by)


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
