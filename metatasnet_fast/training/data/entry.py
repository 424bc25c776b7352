"""Describe a cached track: ``entry.json`` in the track's folder, written after the samples. Parse the instruments of a
cache, and the stems summed into each: ``drums,strings=violin+viola+cello`` names two instruments, one of three stems.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import INSTRUMENTS, MetaTasNetConfig
from ...errors import ConfigError, TrainingDataError

__all__ = [
    "DEFAULT", "ENTRY", "FORMAT", "RateEntry", "SPLITS", "SPLIT_FOLDER", "Stems", "TrackEntry", "all_parts",
    "parse_instruments", "refuse_shared_tracks", "stems_found",
]  # fmt: skip

Stems = Mapping[str, tuple[str, ...]]
"""The stems that are added up in each instrument, in order."""

DEFAULT: Stems = {name: (name,) for name in INSTRUMENTS}


def parse_instruments(text: str) -> Stems:
    """Parse instruments and their stems from a text such as ``a,b,c=d+e``.

    Raises:
        TrainingDataError: for names that no network can have, or a stem that is in two instruments.
    """
    found: dict[str, tuple[str, ...]] = {}
    for item in text.split(","):
        name, _, parts = (part.strip() for part in item.partition("="))
        if name in found:
            raise TrainingDataError(f"--instruments names {name} twice; give each instrument once.")
        found[name] = tuple(part.strip().lower() for part in parts.split("+")) if parts else (name.lower(),)
    try:
        MetaTasNetConfig(instruments=tuple(found))
    except ConfigError as error:
        raise TrainingDataError(f"--instruments {text}: {error}") from error
    every = [part for parts in found.values() for part in parts]
    twice = [part for part in every if every.count(part) > 1]
    if twice or not all(every):
        raise TrainingDataError(
            f"--instruments {text}: each stem belongs to one instrument, and {twice[0] or 'an empty name'} does not; "
            "write for example strings=violin+viola,other."
        )
    return found


def all_parts(stems: Stems) -> tuple[str, ...]:
    """Return every stem of every instrument, in order."""
    return tuple(part for parts in stems.values() for part in parts)


def stems_found(names: Iterable[str]) -> Stems:
    """Return the instruments of a data set with stems of these names: first those of the paper in its order, then the
    others by name.

    Raises:
        TrainingDataError: if a network cannot have so many instruments, or instruments of these names.
    """
    found = set(names)
    ordered = [*(name for name in INSTRUMENTS if name in found), *sorted(found - set(INSTRUMENTS))]
    try:
        return {name: (name,) for name in MetaTasNetConfig(instruments=tuple(ordered)).instruments}
    except ConfigError as error:
        raise TrainingDataError(
            f"The stems' names are no instruments ({error}) Choose some with --instruments."
        ) from error


FORMAT = 1
"""Version of the cache's layout. Caches of other versions are refused."""

ENTRY = "entry.json"
"""The file of a track's entry, in its folder."""

SPLITS = ("train", "valid", "test")

SPLIT_FOLDER = re.compile(r"train|valid|test|(train|validation)_[0-9]+")
"""Names of the folders into which a source may divide its tracks."""


@dataclass(frozen=True)
class RateEntry:
    """The samples of one rate: ``<rate>.npy``, (instruments, channels, samples)."""

    samples: int
    scale: tuple[float, ...]
    """For each instrument, the value of one stored unit, where full scale is 1."""
    deviation: float
    """Standard deviation over time of the mono mixture (sum of stems, mean of channels); the authors divide by it."""


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
    """False for an instrument that the loss must leave out, because it may be heard in the stem of another instrument,
    or its own stem holds other sounds."""
    stems: Stems = dataclasses.field(default_factory=lambda: DEFAULT)
    """The stems that are added up in each instrument, in order."""
    warnings: tuple[str, ...] = ()

    @property
    def instruments(self) -> tuple[str, ...]:
        return tuple(self.stems)

    @property
    def seconds(self) -> float:
        rate = min(self.rates)
        return self.rates[rate].samples / rate

    def is_other_song(self, sha256: str, origin: str) -> bool:
        """Return whether a track of this name in another split is known to be another song.

        It is known if both tracks lie in one source that has a folder for each split (``S/train/1`` and ``S/valid/1``),
        and the contents of the two differ. In all other cases the track may be a second edition of the same song.
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
