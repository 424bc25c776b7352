"""Find and read tracks: a file, a folder with a file for each stem, MUSDB18's files with all stems, or a tree of these.

References and estimates need not have the same layout: tracks are paired by name, and so are their stems.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from ..audio.read import MIXTURES, MUSDB_SIGNALS, STEM_MP4, find_audio, read_stems
from ..errors import EvaluationError, OutOfMemoryError
from ..separation.devices import memory_for

__all__ = ["AudioTrack", "Pair", "TrackFiles", "mixture_of", "open_tracks", "pair_tracks", "require_one_length"]

REST = ("accompaniment", "instrumental", "no_vocals")
"""Names that programs give to the sum of all stems but the vocals."""

PIECES, PIECE_BYTES = 16, 4096
"""Number of the pieces of a file that identify the file, spread evenly over it, and bytes of a piece. Reading whole
files would take minutes for a data set."""


@dataclass(frozen=True)
class AudioTrack:
    """A decoded track: the stems, (channels, samples) float32, full scale 1, and the mixture if there is one."""

    name: str
    rate: int
    stems: dict[str, torch.Tensor]
    mixture: torch.Tensor | None = None

    @property
    def whole(self) -> torch.Tensor:
        """Return the mixture; if there is no mixture, the sum of the stems."""
        return mixture_of(self.stems) if self.mixture is None else self.mixture

    @property
    def signals(self) -> list[torch.Tensor]:
        return [signal for signal in (*self.stems.values(), self.mixture) if signal is not None]


def mixture_of(stems: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the stems, without stems that are themselves sums of stems."""
    parts = [stem for name, stem in stems.items() if name not in ("accompaniment", "linear_mixture")]
    return torch.stack(parts or list(stems.values())).sum(0)


def require_one_length(name: str, signals: Iterable[torch.Tensor]) -> None:
    """Raise :class:`EvaluationError` if the signals of a track differ in length."""
    if len({signal.shape[-1] for signal in signals}) > 1:
        raise EvaluationError(f"The stems of {name} differ in length. Check the files.")


@dataclass(frozen=True)
class TrackFiles:
    """A track that can be decoded; its scores are stored under `name`."""

    name: str
    files: dict[str, Path]
    """Files by name of the stem, or ``mixture``; all signals may be in one file, or each in a file of its own."""

    def read(self, only: Iterable[str] | None = None) -> AudioTrack:
        """Decode the stems and the mixture, or only some of them.

        Raises:
            EvaluationError: if a file cannot be decoded, or the stems differ in sample rate.
            OutOfMemoryError: if memory does not hold the track.
        """
        try:
            with memory_for(f"decoding {self.name}", "score fewer tracks at once, or free some"):
                audio = read_stems({name: self.files[name] for name in (self.files if only is None else only)})
        except OutOfMemoryError:
            raise
        except Exception as error:  # an error in one track does not end the evaluation
            raise EvaluationError(f"{self.name} cannot be decoded. {error}") from error
        rate, *others = {found.sample_rate for found in audio.values()}
        if others:
            raise EvaluationError(f"The stems of {self.name} differ in sample rate. Check the file.")
        signals = {name: found.samples for name, found in audio.items()}
        mixtures = [signals.pop(name) for name in list(signals) if name in MIXTURES]
        return AudioTrack(self.name, rate, signals, mixtures[0] if mixtures else None)

    def fingerprint(self) -> str | None:
        """Return a checksum of the files' names, sizes and some of their bytes; None if a file cannot be read, for
        which :meth:`read` then raises an error."""
        digest = hashlib.sha256()
        try:
            for path in sorted(set(self.files.values())):
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    digest.update(f"{path.name}\n{size}\n".encode("utf-8", "surrogateescape"))
                    for piece in range(PIECES):
                        file.seek(piece * max(0, size - PIECE_BYTES) // (PIECES - 1))
                        digest.update(file.read(PIECE_BYTES))
        except OSError:
            return None
        return digest.hexdigest()


@dataclass(frozen=True)
class Pair:
    """A track of references and the estimates of its stems."""

    name: str
    reference: TrackFiles
    estimate: TrackFiles
    stems: dict[str, str]
    """Name of a reference -> name of its estimate. The reference ``accompaniment`` is the sum of all but the vocals."""

    def read(self) -> tuple[AudioTrack, dict[str, torch.Tensor]]:
        """Decode references and estimates; raise :class:`EvaluationError` if they differ in sample rate or channels."""
        track = self.reference.read()
        require_one_length(self.name, track.stems.values())
        found = self.estimate.read(self.stems.values())
        if found.rate != track.rate:
            rates = f"{found.rate} Hz, the references {track.rate} Hz"
            raise EvaluationError(f"The estimates of {self.name} have {rates}. Resample one of them.")
        estimates = {reference: found.stems[estimate] for reference, estimate in self.stems.items()}
        if "accompaniment" in estimates and "accompaniment" not in track.stems:
            others = [stem for name, stem in track.stems.items() if name != "vocals"]
            track.stems["accompaniment"] = torch.stack(others).sum(0)
        for stem, estimate in estimates.items():
            if (one := len(estimate)) != (other := len(track.stems[stem])):
                channels = f"{one} channels, the reference {other}"
                raise EvaluationError(f"The estimate of {stem} of {self.name} has {channels}. Convert one of them.")
        return track, estimates

    def fingerprint(self) -> str | None:
        parts = self.reference.fingerprint(), self.estimate.fingerprint()
        return None if None in parts else hashlib.sha256(f"{parts}".encode()).hexdigest()


def open_tracks(path: str | os.PathLike[str], subset: str | None = None) -> list[TrackFiles]:
    """Return the tracks of a file, a folder or a tree; if ``subset`` is given, the tracks of ``path/subset``.

    A folder with audio files is a track, its files are stems; hidden files and folders are left out.

    Raises:
        EvaluationError: if there are no tracks.
    """
    if not os.fspath(path):
        raise EvaluationError("The path is empty. Name a track, or a folder of tracks, `.` for this one.")
    root = Path(path) if subset is None else Path(path) / subset
    if root.is_file():
        if root.name.endswith(STEM_MP4):
            return [TrackFiles(root.name.removesuffix(STEM_MP4), dict.fromkeys(MUSDB_SIGNALS, root))]
        return [TrackFiles(root.stem, {root.stem: root})]
    if not root.is_dir():
        raise EvaluationError(f"There is no file or folder {root}. Name a track, or a folder of tracks.")
    found: dict[Path, dict[str, Path]] = {}
    for file in find_audio(str(root), (), _refuse):
        if (stems := found.setdefault(file.parent, {})).setdefault(file.stem, file) != file:
            raise EvaluationError(f"{stems[file.stem]} and {file.name} would be one stem. Move one of them away.")
    for file in root.rglob(f"[!.]*{STEM_MP4}"):
        found[file.with_name(file.name.removesuffix(STEM_MP4))] = dict.fromkeys(MUSDB_SIGNALS, file)
    if not found:
        raise EvaluationError(f"{root} holds no audio. Name a folder of stems, a tree of these, or MUSDB18.")
    names = {place: _catalogued(place) or (place.resolve() if place == root else place).name for place in found}
    counts = Counter(names.values())
    return [
        TrackFiles(name if counts[name] == 1 else " - ".join(place.relative_to(root).parts), found[place])
        for place, name in sorted(names.items())
    ]


def pair_tracks(references: Sequence[TrackFiles], estimates: Sequence[TrackFiles]) -> tuple[list[Pair], dict[str, str]]:
    """Pair tracks by name, and their stems by name.

    If each side has only one track, the names of these tracks may differ. If each of the two has only one stem, the
    names of the stems may differ, too.

    Returns:
        the pairs, and the names of the reference tracks without estimates, each with the reason.
    """
    by_name = {_key(track): track for track in estimates}
    single = len(references) == len(estimates) == 1
    pairs: list[Pair] = []
    missing: dict[str, str] = {}
    for reference in references:
        estimate = estimates[0] if single else by_name.get(_key(reference))
        if estimate is None:
            missing[reference.name] = "No estimates have this name. Name the folders or files alike."
        elif stems := _pair_stems(reference, estimate, single):
            pairs.append(Pair(reference.name, reference, estimate, stems))
        else:
            missing[reference.name] = (
                f"The estimates ({', '.join(estimate.files)}) have no stem of the references "
                f"({', '.join(reference.files)}). Name the files alike."
            )
    return pairs, missing


def _key(track: TrackFiles) -> str:
    """Return the name by which a track is paired: lower case, without the ``.stem`` that some separators keep."""
    return track.name.lower().removesuffix(".stem")


def _pair_stems(reference: TrackFiles, estimate: TrackFiles, single: bool) -> dict[str, str]:
    mine, theirs = ([stem for stem in track.files if stem not in MIXTURES] for track in (reference, estimate))
    if single and len(mine) == len(theirs) == 1:
        return {mine[0]: theirs[0]}
    known = {stem.lower(): stem for stem in mine}
    pairs = {known[stem.lower()]: stem for stem in theirs if stem.lower() in known}
    rest = [stem for stem in theirs if stem.lower() in REST]
    if rest and "accompaniment" not in pairs and "vocals" in mine and len(mine) > 1:
        pairs["accompaniment"] = rest[0]
    return pairs


def _catalogued(folder: Path) -> str | None:
    """Return the name of the song whose stems a catalogue put into this folder, as its result file tells; None for
    other folders."""
    for path in sorted(folder.glob("result*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # it is a file of another program
            song = PurePosixPath(str(json.loads(path.read_text("utf-8"))["uri"]))
            return song.parent.name if song.stem in MIXTURES else song.stem
    return None


def _refuse(error: OSError) -> None:
    raise EvaluationError(f"{error.filename} cannot be read ({error.strerror}). Change its permissions.")
