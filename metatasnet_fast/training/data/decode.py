"""Decoding a track's stems, once each."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._extras import require
from ..._io import sha256_file
from ...audio import read_audio
from ...config import INSTRUMENTS
from ...errors import MissingDependencyError, TrainingDataError
from .sources import TrackSource, mixture_files, read_counts, stem_files

__all__ = ["Recording", "check_programs", "content_hash", "decode", "input_files"]

MIXTURE = 0
"""Stream of the mixture in a ``.stem.mp4``; the stems follow in the order of ``INSTRUMENTS``."""

CHUNK = 2**20


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


def check_programs(tracks: list[TrackSource]) -> None:
    """Raise :class:`MissingDependencyError` now rather than once for each track."""
    if not any(track.kind == "musdb" for track in tracks):
        return
    missing = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    if missing:
        raise MissingDependencyError(
            f"Reading .stem.mp4 files needs the program {' and '.join(missing)}; install ffmpeg with the system's packages, "
            "or use MUSDB18-HQ, whose wav files need neither."
        )
    _import_stempeg()


def _import_stempeg() -> Any:
    return require("stempeg", "Reading .stem.mp4 files")


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
    """The streams of a ``.stem.mp4`` as musdb reads them: 16-bit integers from ffmpeg, over 32768."""
    stempeg = _import_stempeg()
    signals, warnings = [], []
    try:
        info = stempeg.Info(str(track.path))
        streams, rate = int(info.nb_audio_streams), int(info.sample_rate(MIXTURE))
        if streams < 5:
            raise TrainingDataError(f"{track.path} has {streams} audio streams instead of 5; it is no MUSDB18 track.")
        for stream in range(0 if mixture else 1, 5):
            audio, _ = stempeg.read_stems(
                str(track.path),
                stem_id=stream,
                dtype=np.float32,
                ffmpeg_format="s16le",
                info=info,
                sample_rate=rate,
                always_3d=True,
            )
            signals.append(torch.from_numpy(np.ascontiguousarray(audio[0].T, dtype=np.float32)))
        announced = max(float(info.duration(stream)) for stream in range(5))
    except TrainingDataError:
        raise
    except Exception as error:  # stempeg and ffmpeg raise many types, Warning among them
        reason = str(error).strip().splitlines()
        raise TrainingDataError(
            f"{track.path} cannot be decoded ({reason[-1] if reason else type(error).__name__}); fetch it again."
        ) from error
    shortest, longest = (pick(x.shape[-1] for x in signals) for pick in (min, max))
    if shortest == 0:
        raise TrainingDataError(f"ffmpeg decodes nothing of {track.path}; it is damaged: fetch it again.")
    if longest / rate < announced - 0.1 or shortest < longest:
        warnings.append(f"{track.path.name} announces {announced:.2f} s, {shortest / rate:.2f} s could be decoded")
    signals = [x[:, :shortest] for x in signals]
    whole = (signals[0], rate) if mixture else None
    return Recording(signals[-4:], [rate] * 4, whole, (True,) * 4, tuple(warnings))
