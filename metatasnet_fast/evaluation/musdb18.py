"""The tracks of MUSDB18, of its wav edition, or of any folder laid out like it, each decoded once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import INSTRUMENTS
from ..errors import MissingDependencyError, OutOfMemoryError
from ..separation.memory import memory_for
from .signals import EvaluationError

__all__ = ["MusdbTrack", "TrackReader", "open_musdb"]

PIECES, PIECE_BYTES = 16, 4096
"""How much of each file tells it from others."""


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
            OutOfMemoryError: if memory does not hold the track.
        """
        try:
            with memory_for(f"decoding {self.name}", "score fewer tracks at once, or free some"):
                mixture, stems = self._decode()
            rate = int(self._track.rate)
        except OutOfMemoryError:
            raise
        except Exception as error:  # musdb, stempeg and ffmpeg raise many types
            reason = str(error).strip().splitlines()
            raise EvaluationError(
                f"{self.name} cannot be decoded ({reason[0] if reason else type(error).__name__}). Check the file."
            ) from error
        if len({len(audio) for audio in (mixture, *stems.values())}) > 1:
            raise EvaluationError(f"The stems of {self.name} differ in length. Check the file.")
        return MusdbTrack(self.name, rate, mixture, stems)

    def _decode(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        if self._is_wav:
            return self._track.audio, {name: self._track.sources[name].audio for name in INSTRUMENTS}
        streams = self._track.stems
        return streams[0], dict(zip(INSTRUMENTS, streams[1:5], strict=True))

    def fingerprint(self) -> str | None:
        """What tells the track from another one of its name, wherever it lies: of names, sizes and a sample of the bytes.

        None if its files cannot be read; :meth:`read` says why.
        """
        digest = hashlib.sha256()
        try:
            for path in sorted({str(file.path) for file in (self._track, *self._track.sources.values())}):
                _digest(Path(path), digest)
        except OSError:
            return None
        return digest.hexdigest()


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


def _digest(path: Path, digest: hashlib._Hash) -> None:
    """Of pieces from all over the file: to read a whole data set for every kept track would take minutes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{path.name}\n{size}\n".encode("utf-8", "surrogateescape"))
        for piece in range(PIECES):
            file.seek(piece * max(0, size - PIECE_BYTES) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))


def _readers(tracks: Any, is_wav: bool) -> Iterator[TrackReader]:
    for track in sorted(tracks, key=lambda t: str(t.name)):
        yield TrackReader(str(track.name), track, is_wav)
