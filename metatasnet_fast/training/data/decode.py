"""Decoding a track's stems, once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..._io import sha256_file
from ...audio import AudioFile
from ...audio.read import read_stems
from ...config import INSTRUMENTS
from ...errors import TrainingDataError
from .entry import DEFAULT, Stems, all_parts
from .sources import TrackSource, read_unknown, stem_files

__all__ = ["content_hash", "counted", "decode", "input_files"]


def counted(track: TrackSource, stems: Stems) -> tuple[bool, ...]:
    """Return for each instrument whether the loss may use it: it may if all of its stems are known."""
    unknown = read_unknown(track.path) if track.kind == "stems" else ()
    return tuple(not set(parts) & set(unknown) for parts in stems.values())


def input_files(track: TrackSource, stems: Stems = DEFAULT) -> dict[str, Path]:
    """Return the files that a track is made from, under names that say what each is.

    Raises:
        TrainingDataError: if a stem that counts is missing, there are several files for one, or none at all.
    """
    wanted = all_parts(stems)
    if track.kind == "musdb":
        if lacking := [stem for stem in wanted if stem not in INSTRUMENTS]:
            raise TrainingDataError(f"MUSDB18 has the stems {', '.join(INSTRUMENTS)}, not {', '.join(lacking)}.")
        return {"stems": track.path}
    found, unknown = stem_files(track.path), read_unknown(track.path)
    for stem in wanted:
        if stem not in unknown and stem not in found:
            raise TrainingDataError(
                f"{track.path} has no {stem}; add {stem}.wav (silence, if the track has none), or a track.json with "
                f'{{"unknown": ["{stem}"]}}.'
            )
    files = {stem: _only(found[stem]) for stem in wanted if stem in found}
    if not files:
        raise TrainingDataError(f"{track.path} holds none of {', '.join(wanted)}; add them, or remove the folder.")
    return files


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise TrainingDataError(f"{paths[0].parent} has both {names}; keep one of them.")
    return paths[0]


def content_hash(files: dict[str, Path]) -> str:
    """Return the SHA-256 over names and contents of input files.

    Raises:
        TrainingDataError: if one cannot be read.
    """
    total = hashlib.sha256()
    for name, path in files.items():
        try:
            total.update(f"{name} {sha256_file(path)}\n".encode())
        except OSError as error:
            raise TrainingDataError(f"{path} cannot be read ({error.strerror or error}); check it.") from error
    return total.hexdigest()


def decode(track: TrackSource, stems: Stems = DEFAULT) -> tuple[dict[str, AudioFile], tuple[str, ...]]:
    """Decode the stems of a track.

    Returns:
        each stem that exists, with at most two channels, and warnings.

    Raises:
        TrainingDataError: if the stems do not make a track.
        AudioReadError: if a file cannot be decoded.
    """
    files = input_files(track, stems)
    if track.kind == "musdb":
        files = dict.fromkeys(all_parts(stems), track.path)
    found, warnings = read_stems(files), []
    for name, audio in found.items():
        if len(audio.samples) > 2:
            raise TrainingDataError(f"{files[name]} has {len(audio.samples)} channels; mix it down to stereo or mono.")
        if not audio.samples.any() and any("NaN or infinite" in warning for warning in audio.warnings):
            raise TrainingDataError(f"{files[name]} holds nothing that is finite but zeros; export it again.")
        warnings += [f"{files[name].name}: {warning}" for warning in audio.warnings]
    return found, (*warnings, *_differing_lengths(found))


def _differing_lengths(found: Mapping[str, AudioFile]) -> Iterator[str]:
    seconds = {name: audio.samples.shape[-1] / audio.sample_rate for name, audio in found.items()}
    longest = max(seconds.values())
    for name, value in seconds.items():
        # Codecs and rounding may change the length by half a millisecond.
        if value < longest - 5e-4:
            yield f"{name} ends {longest - value:.3f} s before the longest stem; silence was added"
