"""Find the audio files below a folder. Read files whole or by blocks: return what can be decoded, report the rest.

The stems of a track may be one file each, or one ``.stem.mp4`` with the mixture and all stems, as in MUSDB18.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import AudioReadError, EmptyAudioError, MissingTrackError, NotAudioError
from .decode import (
    UNMARKED_OGG,
    DecodeError,
    Decoder,
    MoreSamples,
    NoAudioStream,
    NoDecoder,
    NoTrack,
    Samples,
    SoundFileDecoder,
)
from .ffmpeg import FFmpegDecoder
from .headers import NOTATIONS, RECOGNISED_BY, UNDECODABLE, recognise, skip_id3

__all__ = [
    "AUDIO_SUFFIXES", "MIXTURES", "MUSDB_SIGNALS", "STEM_MP4", "AudioFile", "AudioStream", "find_audio", "is_address",
    "is_audio_name", "lies_in", "open_audio", "read_audio", "read_stems",
]  # fmt: skip

AUDIO_SUFFIXES = frozenset(
    "aac ac3 aif aifc aiff alac amr ape au caf dts flac m4a m4b mka mp2 mp3 oga ogg opus rf64 snd tta w64 wav wave wma "
    "wv".split()
)
"""Suffixes of the files that are taken from folders. A file that the user names may have any suffix."""

LIBSNDFILE_FIRST = ("RIFF", "Wave64", "IFF", "CAF", "AU", "FLAC", "Ogg")

LEAST = 0.95
"""Least share of the announced samples that a file must have."""


@dataclass(frozen=True)
class AudioFile:
    """A decoded file: `samples` float32 `(channels, n)`, all finite, full scale 1 (which float formats may exceed)."""

    samples: torch.Tensor
    sample_rate: int
    codec: str
    warnings: tuple[str, ...]


class AudioStream:
    """An audio file that is being decoded. Iterate over it once to get blocks: float32 tensors `(channels, n)`, n > 0.

    `frames` is the length that the file declares, or None; in compressed formats the true length may differ by 0.1 s.
    `codec` names container and codec. `depth` is the type of the samples, such as "int16" (a `subtype` of
    `AudioWriter`), or None for lossy codecs. `track` is the number of the audio track, from 1; the file has `tracks` of
    them. `warnings` grows while reading and is complete when the iteration ends. Memory does not grow with the file.
    Use the stream in a `with` statement, or call `close`.
    """

    def __init__(self, path: str | os.PathLike[str], *, track: int | None = None, partial: bool = False) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self.frames_read = 0
        self._replaced = 0
        self._partial = partial
        _check_file(self.path, os.fspath(path))
        self._decoder, self._decoded, self._first = _open_decoder(self.path, track, self.warnings)
        self.sample_rate, self.channels = self._decoder.sample_rate, self._decoder.channels
        self.codec, self.depth = self._decoder.codec, self._decoder.depth
        self.track, self.tracks = self._decoder.track, self._decoder.tracks
        self.frames, self._announced = self._decoder.frames, self._decoder.announced
        self._blocks = self._read()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        return next(self._blocks)

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; a stream may be closed before its end."""
        self._blocks.close()
        self._decoder.close()

    def _read(self) -> Generator[torch.Tensor, None, None]:
        try:
            yield self._finite(self._first)
            for block in self._decoded:
                yield self._finite(block)
        except DecodeError as error:
            yield from self._read_on(error)
        self.warnings += self._decoder.notes
        if self._replaced:
            self.warnings.append(f"{self._replaced} samples were NaN or infinite and were replaced by 0")
        self._compare_length()

    def _read_on(self, failure: DecodeError) -> Iterator[torch.Tensor]:
        """Continue with FFmpeg after libsndfile has stopped: libsndfile does not look for the next good FLAC frame."""
        position = f"decoding stopped after {self.frames_read} samples ({failure})"
        if isinstance(self._decoder, FFmpegDecoder):
            self.warnings.append(position)
            return
        try:
            other = FFmpegDecoder(self.path)
        except DecodeError as error:
            self.warnings.append(f"{position}; FFmpeg: {error}")
            return
        self._decoder.close()
        self.warnings += self._decoder.notes
        self._decoder = other
        if not isinstance(failure, MoreSamples):  # the difference in length is reported at the end
            self.warnings.append(f"{position}; FFmpeg went on from there")
        if (other.sample_rate, other.channels) != (self.sample_rate, self.channels):
            self.warnings.append(f"FFmpeg found {other.sample_rate} Hz with {other.channels} channels instead")
            return
        try:
            for block in _without_first(other.blocks(), self.frames_read):
                yield self._finite(block)
        except DecodeError as error:
            self.warnings.append(f"decoding stopped after {self.frames_read} samples ({error})")

    def _finite(self, block: Samples) -> torch.Tensor:
        finite = np.isfinite(block)
        if not finite.all():
            self._replaced += int(block.size - np.count_nonzero(finite))
            block = np.where(finite, block, np.float32(0))
        self.frames_read += block.shape[1]
        return torch.from_numpy(block)

    def _compare_length(self) -> None:
        if self._announced is None:
            return
        difference = self.frames_read - self._announced
        if abs(difference) <= self._decoder.tolerance * self.sample_rate:
            return
        if difference > 0:
            self.warnings.append(
                f"the file announces {self._announced} samples, {self.frames_read} are there and were read"
            )
            return
        lack = f"the file announces {self._announced} samples, {self.frames_read} could be decoded"
        self.warnings.append(lack)
        if self.frames_read < LEAST * self._announced and not self._partial:
            share = f"{self.frames_read / self._announced:.1%}"
            raise AudioReadError(
                f"Only {share} of {self.path} could be decoded ({'; '.join(self.warnings)}); fetch or export it again, "
                "or ask for what is there (partial)."
            )


def open_audio(path: str | os.PathLike[str], *, track: int | None = None, partial: bool = False) -> AudioStream:
    """Open an audio or video file for reading block by block.

    Args:
        path: a regular file.
        track: number of the audio track, from 1; by default the one that the container calls its default, or the first.
        partial: accept a file of which less than 95 % of the announced samples can be decoded.

    Raises:
        NotAudioError: for files without audio, which neither begin as audio files do nor can be decoded.
        MissingTrackError: for files without that track.
        EmptyAudioError: for audio without samples.
        AudioReadError: for a file that is missing, forbidden or too damaged, or whose codec cannot be decoded here.
            Without ``partial``, at the end of the iteration, for a file of which less than 95 % could be decoded.
        MissingDependencyError: if the package of a decoder is not installed.
    """
    return AudioStream(path, track=track, partial=partial)


def read_audio(path: str | os.PathLike[str], *, track: int | None = None, partial: bool = False) -> AudioFile:
    """Read a whole audio or video file; arguments and errors as in `open_audio`."""
    with open_audio(path, track=track, partial=partial) as stream:
        samples = torch.cat(list(stream), 1)
        return AudioFile(samples, stream.sample_rate, stream.codec, tuple(stream.warnings))


def is_address(name: str) -> bool:
    """Return whether a name is a URL, such as ``https://...``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name) is not None


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AudioReadError(f"{path} is a directory; name one audio file.")
        if not stat.S_ISREG(status.st_mode):
            raise AudioReadError(f"{path} is not a regular file; store the audio in a file first.")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        if isinstance(name, str) and is_address(name):
            raise AudioReadError(f"{name} is an address, and nothing is fetched here; download it first.") from None
        raise AudioReadError(f"There is no file {path}; check the path.") from None
    except AudioReadError:  # it is an OSError, too
        raise
    except PermissionError:
        raise AudioReadError(f"{path} may not be read by this user; change its permissions.") from None
    except (OSError, ValueError) as error:  # a name that is too long, contains a zero byte, or lies below a file
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioReadError(f"{str(path)!r} cannot be opened ({reason}); check the path.") from None
    if status.st_size == 0:
        raise EmptyAudioError(f"{path} is an empty file; fetch or export it again.")


def _open_decoder(path: Path, track: int | None, warnings: list[str]) -> tuple[Decoder, Iterator[Samples], Samples]:
    """Return the first decoder that gives samples, its iterator of blocks, and the first block.

    If another decoder found damage in the first block, this is added to ``warnings``.
    """
    with open(path, "rb") as file:
        kind = recognise(file.read(RECOGNISED_BY))
        skip_id3(file)
        inner = recognise(file.read(RECOGNISED_BY))
    if inner in NOTATIONS:
        raise NotAudioError(f"{path} is a {inner}: it holds notes and no recording; play it into a WAV file first.")
    if inner in UNDECODABLE:
        raise AudioReadError(f"{path} is an {inner}, which nothing here decodes; convert it to WAV or FLAC first.")
    names = ["FFmpeg", "libsndfile"]
    if kind in LIBSNDFILE_FIRST and track in (None, 1):
        names.reverse()
    elif track is not None or path.suffix.lower() == ".mp3" or kind in ("MPEG audio", "ID3"):
        names.remove("libsndfile")  # its MP3 parser writes to standard error about data that it cannot read
    reasons: list[str] = []
    damaged: list[str] = []
    advice = "if it should be audio it is damaged or incomplete: fetch or export it again"
    empty = False
    decoder: Decoder
    for name in names:
        try:
            decoder = SoundFileDecoder(path) if name == "libsndfile" else FFmpegDecoder(path, track)
        except NoAudioStream as error:
            raise NotAudioError(f"{path} holds no audio (FFmpeg: {error}); name an audio or video file.") from None
        except NoTrack as error:
            raise MissingTrackError(f"{path} has {error}; name another one.") from None
        except DecodeError as error:
            reasons.append(f"{name}: {error}")
            if isinstance(error, NoDecoder):
                advice = "export it as WAV or FLAC, uncompressed, with the program that made it"
            continue
        blocks = decoder.blocks()
        try:
            first = next(blocks, None)
        except BaseException as error:
            decoder.close()
            if not isinstance(error, DecodeError):
                raise
            reasons.append(f"{name}: {error}")
            if not isinstance(error, MoreSamples):
                damaged.append(f"decoding stopped before the first block was whole ({name}: {error})")
            continue
        if first is not None:
            warnings += [f"{text}; {name} decoded the file" for text in damaged]
            return decoder, blocks, first
        decoder.close()
        damage = [note for note in decoder.notes if note != UNMARKED_OGG]
        if decoder.announced:
            damage.append(f"{decoder.announced} samples are announced, none could be decoded")
        if damage:
            reasons.append(f"{name}: {'; '.join(damage)}")
        else:
            empty = True
    if kind is None:  # even if a decoder accepted the file
        reasons.append("it does not begin as audio files do")
        raise NotAudioError(f"{path} cannot be read as audio ({'; '.join(reasons)}); {advice}.")
    if empty:
        raise EmptyAudioError(f"{path} holds no samples; leave it out, or export it again.")
    raise AudioReadError(f"{path} cannot be read as audio ({'; '.join(reasons)}); {advice}.")


def _without_first(blocks: Iterator[Samples], count: int) -> Iterator[Samples]:
    for block in blocks:
        rest = block[:, min(count, block.shape[1]) :]
        count -= block.shape[1] - rest.shape[1]
        if rest.shape[1]:
            yield np.ascontiguousarray(rest)


STEM_MP4 = ".stem.mp4"
MUSDB_SIGNALS = ("mixture", "drums", "bass", "other", "vocals")
"""The signals in a ``.stem.mp4``, in this order."""

MIXTURES = ("mixture", "mix")
"""Names of files that hold a mixture instead of a stem."""

FULL_SCALE = 32768


def read_stems(files: Mapping[str, Path]) -> dict[str, AudioFile]:
    """Decode stems, and the mixture if ``files`` names it.

    Signals of a ``.stem.mp4`` are read as musdb reads them: as 16-bit integers over 32768, so that samples beyond full
    scale are clipped, and cut to the length of the shortest signal.

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


def is_audio_name(path: str) -> bool:
    """Return whether a path, with `/` between its parts, ends as audio files do and has no hidden part."""
    parts = path.strip("/").split("/")
    return parts[-1].rpartition(".")[2].lower() in AUDIO_SUFFIXES and not any(part.startswith(".") for part in parts)


def find_audio(folder: str, exclude: Collection[str], onerror: Callable[[OSError], object]) -> Iterator[Path]:
    """Yield the audio files of a folder and of the folders below it, in alphabetic order, each folder once.

    Links to folders are followed last, so that a file that can be reached without a link is listed without the link.
    Hidden files and folders are left out.

    Args:
        exclude: real paths of folders that are left out with their contents, even if a link leads to such a folder.
        onerror: called with the system's error if a folder cannot be read; if ``onerror`` returns, the search goes on.
    """
    for place, names in _walk(folder, exclude, onerror):
        yield from (Path(place, name) for name in names if is_audio_name(name))


def _walk(top: str, exclude: Collection[str], onerror: Callable[[OSError], object]) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder from ``top`` down with the names of its files; see :func:`find_audio`.

    A folder to which several links lead is yielded once, so that circles of links end.
    """
    walked: set[str] = set()
    starts = deque([top])
    while starts:
        start = starts.popleft()
        base = os.path.realpath(start)
        if base in walked:
            continue
        for place, folders, files in os.walk(start, onerror=onerror):
            # Only ``start`` can be the target of a link, as os.walk follows no links.
            real = os.path.normpath(os.path.join(base, place[len(start) :].lstrip(os.sep)))
            walked.add(real)
            names = sorted(name for name in folders if not name.startswith("."))
            folders.clear()
            for name in names:
                path, really = os.path.join(place, name), os.path.join(real, name)
                if not os.path.islink(path):
                    folders += [name] if really not in walked and really not in exclude else []
                elif not lies_in(path, exclude):
                    starts.append(path)
            yield place, sorted(files)


def lies_in(path: str, folders: Collection[str]) -> bool:
    """Return whether a path leads to one of the folders, or below it; ``folders`` are real paths."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(os.path.join(folder, "")) for folder in folders)
