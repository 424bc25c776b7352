"""Find tracks with stems: MUSDB18 in both editions, folders of stems, and tracks that the authors' program prepared.

No file is decoded here: an unusable track is reported when it is prepared, and does not stop the others.

Also parse the instruments of a cache, and the stems that are added up in each: ``drums,strings=violin+viola+cello``
names two instruments, of which the second is the sum of three stems.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...audio.read import AUDIO_SUFFIXES, MIXTURES, STEM_MP4
from ...config import INSTRUMENTS, MetaTasNetConfig
from ...errors import ConfigError, TrainingDataError
from .store import ENTRY, SPLITS, Stems

__all__ = [
    "MUSDB_VALIDATION", "TrackSource", "all_parts", "find_musdb", "find_original", "find_stems", "parse_instruments",
    "read_unknown", "stem_files", "stems_found",
]  # fmt: skip

MUSDB_VALIDATION = frozenset(
    [
        "ANiMAL - Rockshow",
        "Actions - One Minute Smile",
        "Alexander Ross - Goodbye Bolero",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Fergessen - Nos Palpitants",
        "James May - On The Line",
        "Johnny Lokke - Promises & Lies",
        "Leaf - Summerghost",
        "Meaxic - Take A Step",
        "Patrick Talbot - A Reason To Leave",
        "Skelpolu - Human Mistakes",
        "Traffic Experiment - Sirens",
        "Triviul - Angelsaint",
        "Young Griffo - Pennies",
    ]
)
"""The 14 tracks of MUSDB18's training set that are commonly used for validation (``mus.yaml`` of the package musdb)."""

ANNOTATION = "track.json"

ORIGINAL_SPLITS = {"train": "train", "validation": "valid"}


@dataclass(frozen=True)
class TrackSource:
    """A track that can be prepared."""

    name: str
    split: str
    path: Path
    """A folder of stems, a ``.stem.mp4``, or the authors' ``.npz`` at the lowest rate."""
    kind: str
    """``stems`` for a folder, ``musdb`` for a ``.stem.mp4``, ``original`` for the authors' ``.npz``."""


def find_stems(root: str | os.PathLike[str], held_out: Sequence[str] = ()) -> list[TrackSource]:
    """Find the tracks of ``root/{train,valid,test}/<track>/<stem>.*``, or of ``root/<track>/...``; stems may have any
    names.

    In the second form every track belongs to ``train``. Tracks named in ``held_out`` go from ``train`` to ``valid``.

    Raises:
        TrainingDataError: if there is no track, ``root`` is a cache, or ``held_out`` names a track that is not in
            ``train``.
    """
    root = _directory(root)
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if splits:
        found = [TrackSource(p.name, s, p, "stems") for s in splits for p in _folders(root / s)]
    else:
        # A source may hold other folders next to its tracks: only folders with audio files are tracks.
        found = [TrackSource(p.name, "train", p, "stems") for p in _folders(root) if stem_files(p)]
    if not found:
        raise TrainingDataError(
            f"{root} holds no tracks: each must be a folder with an audio file for every stem, in {root} or in its folders "
            "train, valid and test."
        )
    _refuse_cache(root, found)
    return _hold_out(found, held_out)


def find_musdb(root: str | os.PathLike[str]) -> list[TrackSource]:
    """Find the tracks of MUSDB18 (``.stem.mp4``) or MUSDB18-HQ (folders of wav). The usual validation tracks go from
    ``train`` to ``valid``.

    Raises:
        TrainingDataError: if ``root`` holds neither edition, or is a cache.
    """
    root = _directory(root)
    found = []
    for split in ("train", "test"):
        folder = root / split
        files = sorted(folder.glob(f"*{STEM_MP4}")) if folder.is_dir() else []
        tracks = [(p.name.removesuffix(STEM_MP4), p, "musdb") for p in files if not p.name.startswith(".")]
        if folder.is_dir() and not tracks:
            tracks = [(p.name, p, "stems") for p in _folders(folder)]
        for name, path, kind in tracks:
            place = "valid" if split == "train" and name in MUSDB_VALIDATION else split
            found.append(TrackSource(name, place, path, kind))
    if not found:
        raise TrainingDataError(f"{root} is not MUSDB18: it has no tracks in its folders train and test.")
    _refuse_cache(root, found)
    return found


def find_original(root: str | os.PathLike[str], rates: Sequence[int]) -> list[TrackSource]:
    """Find tracks that the authors' program prepared: ``root/train_8/0000.npz`` and so on.

    Args:
        rates: sampling rates in hertz. The tracks are searched at the lowest rate.

    Raises:
        TrainingDataError: if there are no such tracks at the lowest rate.
    """
    root = _directory(root)
    found = []
    for original, split in ORIGINAL_SPLITS.items():
        folder = root / f"{original}_{min(rates) // 1000}"
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        found += [TrackSource(file.stem, split, file, "original") for file in files]
    if not found:
        raise TrainingDataError(
            f"{root} holds no folder train_{min(rates) // 1000} with .npz files, as the authors' program prepares them."
        )
    return found


def stem_files(folder: Path) -> dict[str, list[Path]]:
    """Return the audio files of a folder by the stem's name in lower case. The mixture is left out; a stem may have
    several files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        stem = path.stem.lower()
        if path.suffix.lower().lstrip(".") in AUDIO_SUFFIXES and stem not in MIXTURES and not path.is_dir():
            found.setdefault(stem, []).append(path)
    return found


def read_unknown(folder: Path) -> tuple[str, ...]:
    """Return the names of the stems that the loss must leave out, in lower case.

    The names stand in the optional ``track.json`` of the folder, as ``{"unknown": ["bass"]}``. Without that file or
    key, the result is ().

    Raises:
        TrainingDataError: if the file cannot be read, is no JSON object, or ``unknown`` is not a list of names.
    """
    file = folder / ANNOTATION
    if not file.exists():
        return ()
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingDataError(f"{file} cannot be read ({error}); correct it.") from error
    unknown = content.get("unknown", []) if isinstance(content, dict) else None
    if not isinstance(unknown, list) or not all(isinstance(stem, str) for stem in unknown):
        raise TrainingDataError(f'{file} must look like {{"unknown": ["bass"]}}, with names of stems; correct it.')
    return tuple(stem.lower() for stem in unknown)


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
    """Return the instruments of a data set, one for each name of a stem: first the paper's instruments in the paper's
    order, then the others by name.

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


def _directory(root: str | os.PathLike[str]) -> Path:
    path = Path(root)
    if not path.is_dir():
        raise TrainingDataError(f"There is no folder {path}; check the path.")
    return path


def _refuse_cache(root: Path, tracks: Iterable[TrackSource]) -> None:
    for track in tracks:
        if track.path.is_dir() and (track.path / ENTRY).exists() and not stem_files(track.path):
            raise TrainingDataError(
                f"{track.path} is a track of a cache, so that {root} needs no preparing; train from it, or name the folder of "
                "the songs."
            )


def _folders(root: Path) -> Iterable[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _hold_out(tracks: list[TrackSource], names: Sequence[str]) -> list[TrackSource]:
    known = {track.name for track in tracks if track.split == "train"}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TrainingDataError(
            f"There is no training track {unknown[0]!r} to hold out; there are {', '.join(sorted(known)) or 'none'}."
        )
    return [replace(t, split="valid") if t.split == "train" and t.name in names else t for t in tracks]
