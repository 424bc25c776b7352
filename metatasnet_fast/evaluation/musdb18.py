"""The tracks of MUSDB18, of its wav edition, or of any folder laid out like it, each decoded once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import INSTRUMENTS
from ..errors import MissingDependencyError
from .signals import EvaluationError

__all__ = ["MusdbTrack", "TrackReader", "open_musdb"]


@dataclass(frozen=True)
class MusdbTrack:
    """A decoded track: ``mixture`` (samples, channels), and the true stems likewise; full scale is 1."""

    name: str
    rate: int
    mixture: NDArray[np.float64]
    stems: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TrackReader:
    """A track that can be decoded; ``name`` is the one under which its scores are filed."""

    name: str
    _track: Any
    _is_wav: bool

    def read(self) -> MusdbTrack:
        """Decode mixture and stems, the five streams of a ``.stem.mp4`` in one call of ffmpeg.

        Raises:
            EvaluationError: if the file cannot be decoded, or its stems differ in length.
        """
        try:
            if self._is_wav:
                mixture = self._track.audio
                stems = {name: self._track.sources[name].audio for name in INSTRUMENTS}
            else:
                streams = self._track.stems
                mixture, stems = streams[0], dict(zip(INSTRUMENTS, streams[1:5], strict=True))
            rate = int(self._track.rate)
        except Exception as error:  # musdb, stempeg and ffmpeg raise many types
            reason = str(error).strip().splitlines()
            raise EvaluationError(
                f"{self.name} cannot be decoded ({reason[0] if reason else type(error).__name__}). Check the file."
            ) from error
        if len({len(audio) for audio in (mixture, *stems.values())}) > 1:
            raise EvaluationError(f"The stems of {self.name} differ in length. Check the file.")
        return MusdbTrack(self.name, rate, mixture, stems)


def open_musdb(root: str | os.PathLike[str], subset: str = "test") -> list[TrackReader]:
    """The tracks of ``root/subset``, read by the package musdb: ``.stem.mp4`` files, or folders of wav files.

    Raises:
        EvaluationError: if there are none.
        MissingDependencyError: without musdb, or the program ffmpeg where the tracks are ``.stem.mp4``.
    """
    folder = Path(root) / subset
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}. Name the folder of MUSDB18 that holds train and test.")
    is_wav = not any(folder.glob("*.stem.mp4"))
    if is_wav and not any(folder.glob("*/mixture.wav")):
        raise EvaluationError(f"{folder} holds neither .stem.mp4 files nor folders with mixture.wav. Is it MUSDB18?")
    if not is_wav and not all(shutil.which(program) for program in ("ffmpeg", "ffprobe")):
        raise MissingDependencyError(
            "Reading .stem.mp4 files needs the programs ffmpeg and ffprobe. Install ffmpeg with the system's packages."
        )
    try:
        import musdb
    except ImportError as error:
        raise MissingDependencyError(
            "Reading MUSDB18 needs the package musdb. Install it with: pip install 'metatasnet-fast[evaluation]'"
        ) from error
    tracks = musdb.DB(root=str(root), subsets=[subset], is_wav=is_wav).tracks
    return list(_readers(tracks, is_wav))


def _readers(tracks: Any, is_wav: bool) -> Iterator[TrackReader]:
    for track in sorted(tracks, key=lambda t: str(t.name)):
        yield TrackReader(str(track.name), track, is_wav)
