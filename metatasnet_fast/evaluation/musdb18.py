"""The tracks of MUSDB18, of its wav edition, or of any folder laid out like it, each decoded once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..audio import read_audio
from ..audio.stem_mp4 import read_stem_mp4
from ..config import INSTRUMENTS
from ..errors import OutOfMemoryError
from ..separation.memory import memory_for
from .signals import EvaluationError

__all__ = ["MusdbTrack", "TrackReader", "open_musdb"]

STEM_MP4 = ".stem.mp4"
MIXTURE = "mixture"

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
    files: dict[str, Path]
    """The mixture and every stem; one file for all of them, or one each."""

    def read(self) -> MusdbTrack:
        """Decode mixture and stems.

        Raises:
            EvaluationError: if a file cannot be decoded, or they differ in length or rate.
            OutOfMemoryError: if memory does not hold the track.
        """
        try:
            with memory_for(f"decoding {self.name}", "score fewer tracks at once, or free some"):
                signals, rates = self._decode()
        except OutOfMemoryError:
            raise
        except Exception as error:  # one track does not end the evaluation
            raise EvaluationError(f"{self.name} cannot be decoded. {error}") from error
        if len({len(audio) for audio in signals.values()}) > 1:
            raise EvaluationError(f"The stems of {self.name} differ in length. Check the file.")
        if len(rates) > 1:
            raise EvaluationError(f"The stems of {self.name} differ in sample rate. Check the file.")
        mixture = signals.pop(MIXTURE)
        return MusdbTrack(self.name, rates.pop(), mixture, signals)

    def _decode(self) -> tuple[dict[str, NDArray[np.float64]], set[int]]:
        if len(set(self.files.values())) == 1:
            decoded, rate, _ = read_stem_mp4(self.files[MIXTURE], range(1, 1 + len(self.files)))
            signals = dict(zip(self.files, decoded, strict=True))
            rates = {rate}
        else:
            audio = {name: read_audio(path) for name, path in self.files.items()}
            signals = {name: found.samples for name, found in audio.items()}
            rates = {found.sample_rate for found in audio.values()}
        return {name: samples.T.numpy().astype(np.float64) for name, samples in signals.items()}, rates

    def fingerprint(self) -> str | None:
        """What tells the track from another one of its name, wherever it lies: of names, sizes and a sample of the bytes.

        None if its files cannot be read; :meth:`read` says why.
        """
        digest = hashlib.sha256()
        try:
            for path in sorted(set(self.files.values())):
                _digest(path, digest)
        except OSError:
            return None
        return digest.hexdigest()


def open_musdb(root: str | os.PathLike[str], subset: str = "test") -> list[TrackReader]:
    """Return the tracks of ``root/subset``: ``.stem.mp4`` files, or folders of wav files.

    Raises:
        EvaluationError: if there are none.
    """
    folder = Path(root) / subset
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}. Name the folder of MUSDB18 that holds train and test.")
    names = (MIXTURE, *INSTRUMENTS)
    tracks = [
        TrackReader(path.name.removesuffix(STEM_MP4), dict.fromkeys(names, path))
        for path in sorted(folder.glob(f"*{STEM_MP4}"))
        if not path.name.startswith(".")
    ]
    if not tracks:
        tracks = [
            TrackReader(path.parent.name, {name: path.with_name(f"{name}.wav") for name in names})
            for path in sorted(folder.glob(f"*/{MIXTURE}.wav"))
        ]
    if not tracks:
        raise EvaluationError(f"{folder} holds neither .stem.mp4 files nor folders with mixture.wav. Is it MUSDB18?")
    return tracks


def _digest(path: Path, digest: hashlib._Hash) -> None:
    """Of pieces from all over the file: to read a whole data set for every kept track would take minutes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{path.name}\n{size}\n".encode("utf-8", "surrogateescape"))
        for piece in range(PIECES):
            file.seek(piece * max(0, size - PIECE_BYTES) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
