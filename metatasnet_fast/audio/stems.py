"""The stems of a track: each in its own file, or all with the mixture in one ``.stem.mp4``, as in MUSDB18."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import AudioReadError, MissingTrackError
from .read import AudioFile, read_audio

__all__ = ["MIXTURES", "MUSDB_SIGNALS", "STEM_MP4", "read_stems"]

STEM_MP4 = ".stem.mp4"
MUSDB_SIGNALS = ("mixture", "drums", "bass", "other", "vocals")
"""The signals in a ``.stem.mp4``, in this order."""

MIXTURES = ("mixture", "mix")
"""Names of files that are no stems."""

FULL_SCALE = 32768


def read_stems(files: Mapping[str, Path]) -> dict[str, AudioFile]:
    """Decode stems, and the mixture if it is asked for.

    As musdb does, signals of a ``.stem.mp4`` are read as 16-bit integers over 32768 (what AAC decodes beyond full scale is
    clipped), and cut to the shortest of them.

    Args:
        files: name of each signal -> its file. In a ``.stem.mp4`` the name is one of :data:`MUSDB_SIGNALS`.

    Raises:
        AudioReadError: if a file cannot be decoded, or a ``.stem.mp4`` has too few signals.
    """
    found, shared = {}, set()
    for name, path in files.items():
        if path.name.endswith(STEM_MP4):
            found[name] = _read_musdb(path, name)
            shared.add(name)
        else:
            found[name] = read_audio(path)
    shortest = min((found[name].samples.shape[1] for name in shared), default=0)
    for name in shared:
        if (beyond := found[name].samples.shape[1] - shortest) > 0:
            cut = (
                f"{name} goes on for {beyond / found[name].sample_rate:.3f} s after the shortest signal, which was cut"
            )
            warnings = (*found[name].warnings, cut)
            found[name] = replace(found[name], samples=found[name].samples[:, :shortest], warnings=warnings)
    return found


def _read_musdb(path: Path, name: str) -> AudioFile:
    try:
        audio = read_audio(path, track=1 + MUSDB_SIGNALS.index(name))
    except MissingTrackError as error:
        raise AudioReadError(
            f"{path} holds no {name}, so it is no track of MUSDB18, whose files hold {', '.join(MUSDB_SIGNALS)}."
        ) from error
    samples = (audio.samples * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE
    return replace(audio, samples=samples, warnings=tuple(f"{name}: {warning}" for warning in audio.warnings))
