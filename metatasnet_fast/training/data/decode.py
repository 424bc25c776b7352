"""Decoding a track's stems, once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._io import sha256_file
from ...audio import open_audio, read_audio
from ...audio.stem_mp4 import read_stem_mp4
from ...config import INSTRUMENTS
from ...errors import TrainingDataError
from .sources import TrackSource, mixture_files, read_counts, stem_files

__all__ = ["Recording", "content_hash", "decode", "input_files"]

MIXTURE = 1
"""Audio track of the mixture in a ``.stem.mp4``; the stems follow in the order of ``INSTRUMENTS``."""


@dataclass(frozen=True)
class Recording:
    """A decoded track, full scale 1; every signal has ``channels`` channels, at most 2."""

    stems: list[Tensor]
    """Four signals (channels, n), float32, each at its own rate."""
    rates: list[int]
    mixture: tuple[Tensor, int] | None
    """The mixture that comes with the stems and its rate, if it was asked for and there is one."""
    counts: tuple[bool, ...]
    warnings: tuple[str, ...]

    @property
    def channels(self) -> int:
        return int(self.stems[0].shape[0])


def input_files(track: TrackSource, *, mixture: bool = False) -> dict[str, Path]:
    """The files that a track is made from, under names that say what they are.

    Args:
        mixture: also the mixture beside the stems, if there is one.

    Raises:
        TrainingDataError: if a stem that counts is missing, or there are several files for one.
    """
    if track.kind == "musdb":
        return {"stems": track.path}
    found = stem_files(track.path)
    counts = read_counts(track.path)
    for stem, counted in zip(INSTRUMENTS, counts, strict=True):
        if counted and not found[stem]:
            raise TrainingDataError(
                f"{track.path} has no {stem}; add {stem}.wav (silence, if the track has none), or a track.json with "
                f'{{"unknown": ["{stem}"]}}.'
            )
    if not any(found.values()):
        raise TrainingDataError(f"{track.path} holds no stems; add them, or remove the folder.")
    files = {stem: _only(paths) for stem, paths in found.items() if paths}
    beside = mixture_files(track.path) if mixture else []
    return {**files, "mixture": _only(beside)} if beside else files


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise TrainingDataError(f"{paths[0].parent} has both {names}; keep one of them.")
    return paths[0]


def content_hash(files: dict[str, Path]) -> str:
    """SHA-256 over names and contents of input files.

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


def decode(track: TrackSource, *, mixture: bool = False) -> Recording:
    """Decode a track's stems, and its mixture if asked for.

    Raises:
        TrainingDataError: if the stems do not make a track.
        AudioReadError: if a file cannot be decoded.
    """
    if track.kind == "musdb":
        return _decode_musdb(track, mixture)
    files = input_files(track, mixture=mixture)
    signals, rates, warnings = {}, {}, []
    for name, path in files.items():
        audio = read_audio(path)
        if len(audio.samples) > 2:
            raise TrainingDataError(f"{path} has {len(audio.samples)} channels; mix it down to stereo or mono.")
        if not audio.samples.any() and any("NaN or infinite" in warning for warning in audio.warnings):
            raise TrainingDataError(f"{path} holds nothing that is finite but zeros; export it again.")
        signals[name], rates[name] = audio.samples, audio.sample_rate
        warnings += [f"{path.name}: {warning}" for warning in audio.warnings]
    warnings += _differing_lengths(signals, rates)
    channels = max(len(x) for x in signals.values())
    signals = {name: x.expand(channels, -1) for name, x in signals.items()}
    silence, rate = torch.zeros(channels, 1), max(rates.values())
    return Recording(
        [signals.get(stem, silence) for stem in INSTRUMENTS],
        [rates.get(stem, rate) for stem in INSTRUMENTS],
        (signals["mixture"], rates["mixture"]) if "mixture" in signals else None,
        read_counts(track.path),
        tuple(warnings),
    )


def _differing_lengths(signals: dict[str, Tensor], rates: dict[str, int]) -> Iterator[str]:
    seconds = {name: x.shape[-1] / rates[name] for name, x in signals.items()}
    longest = max(seconds.values())
    for name, value in seconds.items():
        # Half a millisecond is what codecs and rounding may do.
        if value < longest - 5e-4:
            yield f"{name} ends {longest - value:.3f} s before the longest stem; silence was added"


def _decode_musdb(track: TrackSource, mixture: bool) -> Recording:
    """The tracks of a ``.stem.mp4``: the mixture, then the stems."""
    with open_audio(track.path) as stream:
        if stream.tracks < 1 + len(INSTRUMENTS):
            raise TrainingDataError(
                f"{track.path} has {stream.tracks} audio streams instead of {1 + len(INSTRUMENTS)}; it is no MUSDB18 track."
            )
    wanted = range(MIXTURE if mixture else MIXTURE + 1, MIXTURE + 1 + len(INSTRUMENTS))
    signals, rate, notes = read_stem_mp4(track.path, wanted)
    warnings = [f"{track.path.name}: {note}" for note in notes]
    shortest, longest = (pick(x.shape[-1] for x in signals) for pick in (min, max))
    if shortest < longest:
        warnings.append(
            f"{track.path.name} has streams of {longest / rate:.2f} s, {shortest / rate:.2f} s are in all of them"
        )
    signals = [x[:, :shortest] for x in signals]
    whole = (signals[0], rate) if mixture else None
    stems = signals[-len(INSTRUMENTS) :]
    return Recording(stems, [rate] * len(stems), whole, (True,) * len(stems), tuple(warnings))
