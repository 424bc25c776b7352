"""Decoding a track's stems, once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..._io import sha256_file
from ...audio import open_audio, read_audio
from ...audio.stem_mp4 import read_stem_mp4
from ...config import INSTRUMENTS
from ...errors import TrainingDataError
from .entry import DEFAULT, Stems, all_parts
from .sources import TrackSource, read_unknown, stem_files

__all__ = ["Recording", "content_hash", "counted", "decode", "input_files"]

FIRST_STEM = 2
"""Number of the audio track that holds the first stem of a ``.stem.mp4``, after the mixture; the others follow in the
order of ``INSTRUMENTS``."""


@dataclass(frozen=True)
class Recording:
    """A decoded track, full scale 1; every signal has ``channels`` channels, at most 2."""

    signals: dict[str, tuple[Tensor, int]]
    """Each stem that exists, (channels, n), float32, with its rate."""
    warnings: tuple[str, ...]

    @property
    def channels(self) -> int:
        return max(int(x.shape[0]) for x, _ in self.signals.values())


def counted(track: TrackSource, stems: Stems) -> tuple[bool, ...]:
    """Return for each instrument whether the loss may use it: it may if all of its stems are known."""
    unknown = read_unknown(track.path) if track.kind == "stems" else ()
    return tuple(not set(parts) & set(unknown) for parts in stems.values())


def input_files(track: TrackSource, stems: Stems = DEFAULT) -> dict[str, Path]:
    """Return the files that a track is made from, under names that say what each is.

    Raises:
        TrainingDataError: if a stem that counts is missing, there are several files for one, or none at all.
    """
    if track.kind == "musdb":
        return {"stems": track.path}
    found, unknown, wanted = stem_files(track.path), read_unknown(track.path), all_parts(stems)
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


def decode(track: TrackSource, stems: Stems = DEFAULT) -> Recording:
    """Decode the stems of a track.

    Raises:
        TrainingDataError: if the stems do not make a track.
        AudioReadError: if a file cannot be decoded.
    """
    if track.kind == "musdb":
        return _decode_musdb(track, stems)
    signals, rates, warnings = {}, {}, []
    for name, path in input_files(track, stems).items():
        audio = read_audio(path)
        if len(audio.samples) > 2:
            raise TrainingDataError(f"{path} has {len(audio.samples)} channels; mix it down to stereo or mono.")
        if not audio.samples.any() and any("NaN or infinite" in warning for warning in audio.warnings):
            raise TrainingDataError(f"{path} holds nothing that is finite but zeros; export it again.")
        signals[name], rates[name] = audio.samples, audio.sample_rate
        warnings += [f"{path.name}: {warning}" for warning in audio.warnings]
    warnings += _differing_lengths(signals, rates)
    channels = max(len(x) for x in signals.values())
    return Recording({name: (x.expand(channels, -1), rates[name]) for name, x in signals.items()}, tuple(warnings))


def _differing_lengths(signals: dict[str, Tensor], rates: dict[str, int]) -> Iterator[str]:
    seconds = {name: x.shape[-1] / rates[name] for name, x in signals.items()}
    longest = max(seconds.values())
    for name, value in seconds.items():
        # Codecs and rounding may change the length by half a millisecond.
        if value < longest - 5e-4:
            yield f"{name} ends {longest - value:.3f} s before the longest stem; silence was added"


def _decode_musdb(track: TrackSource, stems: Stems) -> Recording:
    """Decode the stems of a ``.stem.mp4``."""
    lacking = [part for part in all_parts(stems) if part not in INSTRUMENTS]
    if lacking:
        raise TrainingDataError(f"MUSDB18 has the stems {', '.join(INSTRUMENTS)}, not {', '.join(lacking)}.")
    with open_audio(track.path) as stream:
        if stream.tracks < 1 + len(INSTRUMENTS):
            raise TrainingDataError(
                f"{track.path} has {stream.tracks} audio streams instead of {1 + len(INSTRUMENTS)}; it is no MUSDB18 track."
            )
    wanted = range(FIRST_STEM, FIRST_STEM + len(INSTRUMENTS))
    signals, rate, notes = read_stem_mp4(track.path, wanted)
    warnings = [f"{track.path.name}: {note}" for note in notes]
    shortest, longest = (pick(x.shape[-1] for x in signals) for pick in (min, max))
    if shortest < longest:
        warnings.append(
            f"{track.path.name} has streams of {longest / rate:.2f} s, {shortest / rate:.2f} s are in all of them"
        )
    signals = [x[:, :shortest] for x in signals]
    named = zip(INSTRUMENTS, signals, strict=True)
    return Recording({name: (x, rate) for name, x in named if name in all_parts(stems)}, tuple(warnings))
