"""Write a cache: a track's folder appears whole or not at all, and the manifest lists the finished folders.

A folder holds the samples of a track, and ``entry.json``, which describes the track and is written after the samples.

Float samples x are stored as int16 numbers q. The rounding noise is moved away from the frequencies that a resampler
has removed, by a filter h over the earlier rounding errors e:

    v[t] = x[t] / scale + sum_j h[j] e[t - j];  q[t] = round(v[t]);  e[t] = q[t] - v[t]

So the noise q scale - x is the rounding error times the scale, filtered by 1 + sum_j h[j] z^-j. Plain rounding would
fill the last 6 % of the band, where a resampler leaves 1e-5 of the mixture or less. Then these bins of the network's
logarithmic spectrogram would differ between training and separation, by several of their standard deviations (measured
on music).

The filter is the best one of its length. It minimises the noise, weighted with WEIGHT above EDGE and with 1 below it,
and solves the normal equations of linear prediction. Below the edge, the noise grows by 3.5 dB; Gerzon & Craven 1989
show the limit of what such a filter can gain.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..._io import describe_os_error, reporting_write_errors, sync, write_atomically
from ...config import INSTRUMENTS
from ...errors import TrainingDataError

__all__ = [
    "DEFAULT", "DTYPES", "ENTRY", "FORMAT", "PARTIAL", "RateEntry", "SPLITS", "SPLIT_FOLDER", "Stems", "TrackEntry",
    "check_rates", "entries_in", "error_filter", "quantise", "read_entry", "refuse_shared_tracks", "rewrite_entry",
    "write_manifest", "write_track",
]  # fmt: skip

Stems = Mapping[str, tuple[str, ...]]
"""The instruments in order, each with the stems that are added up in it."""

DEFAULT: Stems = {name: (name,) for name in INSTRUMENTS}

FORMAT = 1
"""Version of the cache's layout. Caches of other versions are refused."""

ENTRY = "entry.json"
"""Name of the file in a track's folder that describes the track."""

SPLITS = ("train", "valid", "test")

SPLIT_FOLDER = re.compile(r"train|valid|test|(train|validation)_[0-9]+")
"""Names of the folders into which a source may divide its tracks."""


@dataclass(frozen=True)
class RateEntry:
    """The facts about a track's samples at one rate. The samples are in ``<rate>.npy``, (instruments, channels, samples)."""

    samples: int
    scale: tuple[float, ...]
    """For each instrument, the value of one stored unit, where full scale is 1."""
    deviation: float
    """Standard deviation over time of the mono mixture (sum of stems, mean of channels). The authors divide the track
    by it."""


@dataclass(frozen=True)
class TrackEntry:
    """One track of a cache."""

    name: str
    split: str
    sha256: str
    """Checksum of the contents of the files that the track was made from."""
    origin: str
    """Absolute path of the track in the source."""
    dtype: str
    channels: int
    rates: dict[int, RateEntry]
    counts: tuple[bool, ...]
    """False for an instrument that the loss must leave out: because this instrument may be heard in the stem of another
    one, or because its own stem holds other sounds."""
    stems: Stems = dataclasses.field(default_factory=lambda: DEFAULT)
    """The instruments in order, each with the stems that are added up in it."""
    warnings: tuple[str, ...] = ()

    @property
    def instruments(self) -> tuple[str, ...]:
        return tuple(self.stems)

    @property
    def seconds(self) -> float:
        rate = min(self.rates)
        return self.rates[rate].samples / rate

    def is_other_song(self, sha256: str, origin: str) -> bool:
        """Return whether a track of the same name in another split is known to be another song.

        This is known if both tracks lie in one source that has a folder for each split (``S/train/1`` and
        ``S/valid/1``), and the contents of the two differ. In all other cases the track may be a second edition of the
        same song.

        Args:
            sha256, origin: checksum and path of the other track, as in an entry.
        """
        if not self.sha256 or not sha256 or self.sha256 == sha256:
            return False
        mine, its = Path(self.origin).parent, Path(origin).parent
        return mine != its and mine.parent == its.parent and all(SPLIT_FOLDER.fullmatch(p.name) for p in (mine, its))

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrackEntry:
        """Build an entry; raise :class:`TrainingDataError` for anything that :meth:`to_dict` does not write."""
        try:
            values = dict(values)
            if values.pop("format") != FORMAT:
                raise TrainingDataError("This entry was written by another version; prepare the track again.")
            rates = {
                int(rate): RateEntry(int(r["samples"]), tuple(map(float, r["scale"])), float(r["deviation"]))
                for rate, r in values.pop("rates").items()
            }
            if not all(math.isfinite(x) and x > 0 for r in rates.values() for x in (*r.scale, r.deviation)):
                raise TrainingDataError("This entry has scales that are no positive numbers; prepare the track again.")
            counts, warnings = (tuple(values.pop(key)) for key in ("counts", "warnings"))
            values.pop("loudness", None)  # older caches hold it
            stems = {name: tuple(parts) for name, parts in values.pop("stems", DEFAULT).items()}
            sizes = {len(counts), *(len(r.scale) for r in rates.values())}
            if sizes != {len(stems)}:
                raise TrainingDataError("This entry does not say which instruments it holds; prepare the track again.")
            return cls(rates=rates, counts=counts, stems=stems, warnings=warnings, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TrainingDataError):
                raise
            raise TrainingDataError("This entry cannot be read; prepare the track again.") from error


def refuse_shared_tracks(cache: Path, entries: Iterable[TrackEntry]) -> None:
    """Raise :class:`TrainingDataError` if a track is in two splits: training would see a track that it is scored on."""
    known: dict[str, list[TrackEntry]] = {}
    for entry in entries:
        for other in known.setdefault(entry.name, []):
            if not entry.is_other_song(other.sha256, other.origin):
                raise TrainingDataError(
                    f"{entry.name} is in two splits of the cache at {cache}, {other.split} and {entry.split}; delete "
                    f"{cache / other.split / entry.name} or {cache / entry.split / entry.name}, and prepare again."
                )
        known[entry.name].append(entry)


TAPS, EDGE, WEIGHT = 12, 0.94, 3e4
"""Taps of the filter; the edge as a share of the Nyquist frequency; the weight of the frequencies above the edge."""

LONGEST = 32768
"""Most samples of a piece. A signal is cut into pieces that are rounded at the same time, each from zero errors; the
samples of a piece are rounded one after the other."""

FULL = 32760
"""Largest sample of a stem, in stored units. The rest up to 32767 is room for the filtered noise."""


@functools.cache
def error_filter() -> NDArray[np.float32]:
    """Return the taps h[1], ..., h[TAPS] of the error filter, float32 (TAPS,)."""
    frequency = np.linspace(0, 1, 4097)
    correlation = np.fft.irfft(np.where(frequency >= EDGE, WEIGHT, 1.0))[: TAPS + 1]
    lags = np.abs(np.subtract.outer(np.arange(TAPS), np.arange(TAPS)))
    h: NDArray[np.float32] = np.linalg.solve(correlation[lags], -correlation[1:]).astype(np.float32)
    return h


def quantise(stems: NDArray[np.float32]) -> tuple[NDArray[np.int16], tuple[float, ...]]:
    """Round stems (I, channels, samples) to int16, in units of each stem's scale: its peak divided by 32760.

    Samples that are exactly 0 stay 0, so that a silent source is recognised. The error is at most 1.7 units, half of
    ``1 + sum |h|``.

    Returns:
        the rounded stems, and the scale of each stem.
    """
    peaks = np.abs(stems).max(axis=(1, 2))
    # A silent stem may have any scale. The scale of a stem that is almost silent must not round to 0.
    scale = np.maximum(np.where(peaks > 0, peaks, 1.0) / FULL, np.finfo(np.float32).tiny).astype(np.float32)
    samples = stems.shape[-1]
    piece = min(samples, LONGEST, max(2048, samples // 64))
    pieces = -(-samples // piece)
    # Time first, so that every step reads one row: (piece, stems * channels * pieces).
    rows = np.zeros((*stems.shape[:2], pieces * piece), np.float32)
    np.divide(stems, scale[:, None, None], out=rows[..., :samples])
    rows = np.ascontiguousarray(rows.reshape(-1, piece).T)
    stored = _round(rows).T.reshape(*stems.shape[:2], -1)[..., :samples]
    return np.ascontiguousarray(stored), tuple(float(s) for s in scale)


def _round(rows: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round samples (time, columns), in stored units, to int16; the error filter runs along time.

    Samples that are exactly 0 stay 0, and count as rounded without an error.
    """
    h = error_filter()
    # Row `t % TAPS` of `errors` holds the error of step t. So the errors stay in place, and the filter is rotated.
    turned = [np.array([h[(t - j - 1) % TAPS] for j in range(TAPS)])[:, None] for t in range(TAPS)]
    errors = np.zeros((TAPS, rows.shape[1]), np.float32)
    products = np.empty_like(errors)
    stored = np.empty(rows.shape, np.int16)
    for t, x in enumerate(rows):
        place, sounds = t % TAPS, x != 0
        # Not a BLAS product: that adds in an order that depends on the machine, so results would depend on it, too.
        np.multiply(turned[place], errors, out=products)
        wanted = products.sum(0)
        wanted += x
        rounded = np.rint(wanted)
        rounded *= sounds
        stored[t] = rounded
        rounded -= wanted
        rounded *= sounds
        errors[place] = rounded
    return stored


DTYPES = ("int16", "float32")

PARTIAL = ".partial"
"""Folder in the cache for tracks that are being written. What lies there while no program prepares was left by a killed
program."""


def check_rates(rates: Sequence[int]) -> tuple[int, ...]:
    """Sort the rates in ascending order; raise :class:`TrainingDataError` unless each is a multiple of the first."""
    ordered = tuple(sorted(set(rates)))
    if not ordered or ordered[0] < 1 or any(rate % ordered[0] for rate in ordered):
        raise TrainingDataError(
            f"Every rate must be a multiple of the lowest, or crops cannot be aligned; got {list(rates)}."
        )
    return ordered


def write_track(
    cache: str | os.PathLike[str],
    split: str,
    name: str,
    audio: Mapping[int, NDArray[np.float32]],
    *,
    dtype: str = "int16",
    stems: Stems = DEFAULT,
    counts: Sequence[bool] | None = None,
    sha256: str = "",
    origin: str = "",
    warnings: Sequence[str] = (),
) -> TrackEntry:
    """Store one track; a reader sees it once the manifest lists it.

    Args:
        cache: the cache's folder.
        split: ``train``, ``valid`` or ``test``.
        name: name of the track and of its folder.
        audio: for each rate the instruments (I, channels, samples), full scale 1, finite, 1 or 2 channels. The rates are cut
            to one duration.
        dtype: how samples are stored: ``int16`` with one scale per instrument (see ``quantise``), or ``float32``.
        stems: the instruments, and the stems that each is the sum of.
        counts: False for instruments that the loss must leave out; by default every instrument counts.
        sha256, origin, warnings: stored in the entry.

    Raises:
        TrainingDataError: if the track is silent or not finite, too short for one sample, or the cache cannot be written.
    """
    rates = check_rates(list(audio))
    base = min(audio[rate].shape[-1] // (rate // rates[0]) for rate in rates)
    if base < 1:
        raise TrainingDataError(f"{name} is shorter than one sample at {rates[0]} Hz; leave it out.")
    if not all(np.isfinite(audio[rate]).all() for rate in rates):
        raise TrainingDataError(f"{name} holds samples that are not finite; export it again, or leave it out.")
    if not audio[rates[0]].any():
        raise TrainingDataError(f"All stems of {name} are silent; leave it out.")
    with replace_folder(Path(cache), Path(split) / name) as folder:
        written = {}
        for rate in rates:
            samples = audio[rate][..., : base * (rate // rates[0])]
            deviation = float(samples.mean(1, dtype=np.float64).sum(0).std())
            if deviation == 0:
                raise TrainingDataError(f"The stems of {name} cancel each other or are constant; leave it out.")
            stored, scale = quantise(samples) if dtype == "int16" else (samples, (1.0,) * len(samples))
            np.save(folder / f"{rate}.npy", np.ascontiguousarray(stored))
            written[rate] = RateEntry(samples.shape[-1], scale, deviation)
        counted = (True,) * len(stems) if counts is None else tuple(bool(c) for c in counts)
        entry = TrackEntry(
            name, split, sha256, origin, dtype, samples.shape[1], written, counted, stems, tuple(warnings)
        )
        (folder / ENTRY).write_text(entry.to_json(), "utf-8")
    return entry


@contextmanager
def replace_folder(cache: Path, relative: Path) -> Iterator[Path]:
    """Yield a new folder to fill. When the block ends without an error, it replaces the cache's folder ``relative``.

    If the program is killed at any time, the place holds the complete old folder, the complete new one, or nothing.

    Raises:
        TrainingDataError: if the old folder is no track of a cache, or the new one cannot be written.
    """
    place = cache / relative
    if place.exists() and not (place / ENTRY).exists():
        raise TrainingDataError(f"{place} is no track of a cache; choose another folder for the cache.")
    partial = cache / PARTIAL / "--".join(relative.parts)
    old = partial.with_name(partial.name + ".old")
    try:
        for left_over in (partial, old):
            if left_over.exists():
                shutil.rmtree(left_over)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            sync(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(old)
        partial.rename(place)
        sync(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, TrainingDataError):
            raise TrainingDataError(
                f"{place} cannot be written ({describe_os_error(error)}); make room or choose another folder."
            ) from error
        raise


def replace_text(path: Path, text: str) -> None:
    """Write or replace a file in one step; raise :class:`TrainingDataError` if that fails."""
    with reporting_write_errors(path, TrainingDataError):
        write_atomically(path, text)


def rewrite_entry(folder: Path, entry: TrackEntry) -> None:
    """Replace the entry of a finished track."""
    replace_text(folder / ENTRY, entry.to_json())


def read_entry(folder: Path) -> TrackEntry | None:
    """Return the entry of a track's folder; None if the entry is missing or cannot be read."""
    try:
        return TrackEntry.from_dict(json.loads((folder / ENTRY).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def entries_in(cache: Path) -> Iterator[TrackEntry]:
    """Yield the entries of all finished tracks, split by split, by name."""
    for split in SPLITS:
        folder = cache / split
        for track in sorted(folder.iterdir()) if folder.is_dir() else ():
            entry = read_entry(track)
            if entry is not None:
                # The folder's place decides: a program may have been killed after it moved the folder, and before it
                # changed the entry.
                yield dataclasses.replace(entry, split=split)


def write_manifest(
    cache: str | os.PathLike[str],
    rates: Sequence[int],
    failed: Iterable[Mapping[str, Any]] = (),
    stems: Stems = DEFAULT,
) -> dict[str, Any]:
    """Write ``manifest.json``, which lists the finished tracks of these rates and instruments; return its content.

    Args:
        failed: the tracks that could not be prepared, as the manifest lists them.
    """
    rates = check_rates(rates)
    tracks = [
        entry
        for entry in entries_in(Path(cache))
        if tuple(sorted(entry.rates)) == rates
        and entry.stems == stems
        and all(Path(cache, entry.split, entry.name, f"{rate}.npy").exists() for rate in rates)
    ]
    manifest = {
        "format": FORMAT,
        "tool": f"metatasnet-fast {__version__}",
        "rates": list(rates),
        "stems": list(stems),
        "seconds": {split: round(math.fsum(t.seconds for t in tracks if t.split == split), 3) for split in SPLITS},
        "tracks": [entry.to_dict() for entry in tracks],
        "failed": [dict(failure) for failure in failed],
    }
    text = json.dumps(manifest, indent=1) + "\n"
    replace_text(Path(cache) / "manifest.json", text)
    written: dict[str, Any] = json.loads(text)
    return written
