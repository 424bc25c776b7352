"""Reading audio files, whole or block by block: what decodes is returned, what does not is reported."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from metatasnet_fast.audio.decode import (
    DecodeError,
    Decoder,
    FFmpegDecoder,
    NoAudioStream,
    NoDecoder,
    Samples,
    SoundFileDecoder,
)
from metatasnet_fast.errors import AudioReadError, EmptyAudioError, NotAudioError

__all__ = ["AudioFile", "AudioStream", "open_audio", "read_audio"]

# WAV, its 64-bit and big-endian kin, AIFF, FLAC, Ogg, CAF, AU.
LIBSNDFILE_FIRST = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"caff", b".snd")


@dataclass(frozen=True)
class AudioFile:
    """A decoded file: `samples` float32 `(channels, n)`, all finite, full scale 1 (which float formats may exceed)."""

    samples: torch.Tensor
    sample_rate: int
    codec: str
    warnings: tuple[str, ...]


class AudioStream:
    """An audio file that is being decoded: iterate over it once for its blocks, float32 tensors `(channels, n)`, n > 0.

    `frames` is the length that the file declares, or None; in compressed formats the true one may differ by 0.1 s.
    `codec` names container and codec. `warnings` grows while reading and is complete when the iteration ends.
    Memory does not grow with the file. Use it in a `with` statement, or call `close`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self.frames_read = 0
        self._replaced = 0
        _check_file(self.path)
        self._decoder: Decoder = _open_decoder(self.path)
        self.sample_rate = self._decoder.sample_rate
        self.channels = self._decoder.channels
        self.codec = self._decoder.codec
        self.frames = self._decoder.frames
        self._tolerance = self._decoder.tolerance
        self._blocks = self._read()
        # Files without a single sample are refused here and not at some later time.
        try:
            self._first: torch.Tensor | None = next(self._blocks, None)
            if self._first is None:
                raise self._nothing_decoded()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        if self._first is not None:
            block, self._first = self._first, None
            return block
        return next(self._blocks)

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; a stream may be closed before its end."""
        self._blocks.close()
        self._decoder.close()

    def _read(self) -> Generator[torch.Tensor, None, None]:
        try:
            yield from self._finite(self._decoder.blocks())
        except DecodeError as error:
            yield from self._read_on(error)
        self.warnings += self._decoder.notes
        if self._replaced:
            self.warnings.append(f"{self._replaced} samples were NaN or infinite and were replaced by 0")
        if self.frames is not None:
            missing = self.frames - self.frames_read
            if missing > self._tolerance * self.sample_rate:
                self.warnings.append(f"the file announces {self.frames} samples, {self.frames_read} could be decoded")

    def _read_on(self, failure: DecodeError) -> Iterator[torch.Tensor]:
        """After libsndfile gave up (it does not look for the next good FLAC frame), go on with FFmpeg."""
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
        self.warnings.append(f"{position}; FFmpeg went on from there")
        if (other.sample_rate, other.channels) != (self.sample_rate, self.channels):
            self.warnings.append(f"FFmpeg found {other.sample_rate} Hz with {other.channels} channels instead")
            return
        try:
            yield from self._finite(_without_first(other.blocks(), self.frames_read))
        except DecodeError as error:
            self.warnings.append(f"decoding stopped after {self.frames_read} samples ({error})")

    def _finite(self, blocks: Iterator[Samples]) -> Iterator[torch.Tensor]:
        for block in blocks:
            finite = np.isfinite(block)
            if not finite.all():
                self._replaced += int(block.size - np.count_nonzero(finite))
                block = np.where(finite, block, np.float32(0))
            self.frames_read += block.shape[1]
            yield torch.from_numpy(block)

    def _nothing_decoded(self) -> AudioReadError:
        if self.warnings:
            return AudioReadError(
                f"Nothing in {self.path} could be decoded ({'; '.join(self.warnings)}); fetch or export the file again."
            )
        return EmptyAudioError(f"{self.path} holds no samples; leave it out, or export it again.")


def open_audio(path: str | os.PathLike[str]) -> AudioStream:
    """Open an audio or video file (its first audio stream) for reading block by block.

    Raises `NotAudioError` for files without audio, `EmptyAudioError` for audio without samples, `AudioReadError` for
    what is missing, forbidden, damaged beyond reading, or of a codec that cannot be decoded here, and
    `MissingDependencyError` where a decoder's package is not installed.
    """
    return AudioStream(path)


def read_audio(path: str | os.PathLike[str]) -> AudioFile:
    """Read a whole audio or video file (its first audio stream); raises what `open_audio` raises."""
    with open_audio(path) as stream:
        samples = torch.cat(list(stream), 1)
        return AudioFile(samples, stream.sample_rate, stream.codec, tuple(stream.warnings))


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AudioReadError(f"{path} is a directory; name one audio file.")
        if not stat.S_ISREG(status.st_mode):
            raise AudioReadError(f"{path} is not a regular file; store the audio in a file first.")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise AudioReadError(f"There is no file {path}; check the path.") from None
    except AudioReadError:  # an OSError, too
        raise
    except PermissionError:
        raise AudioReadError(f"{path} may not be read by this user; change its permissions.") from None
    except (OSError, ValueError) as error:  # a name that is too long, or below a file, or holds a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioReadError(f"{str(path)!r} cannot be opened ({reason}); check the path.") from None
    if status.st_size == 0:
        raise EmptyAudioError(f"{path} is an empty file; fetch or export it again.")


def _open_decoder(path: Path) -> Decoder:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic in LIBSNDFILE_FIRST:
        names = ["libsndfile", "FFmpeg"]
    elif path.suffix.lower() == ".mp3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        names = ["FFmpeg"]  # libsndfile's MP3 parser writes to standard error about what it cannot read
    else:
        names = ["FFmpeg", "libsndfile"]
    reasons = []
    advice = "if it should be audio it is damaged or incomplete: fetch or export it again"
    for name in names:
        try:
            return SoundFileDecoder(path) if name == "libsndfile" else FFmpegDecoder(path)
        except NoAudioStream as error:
            raise NotAudioError(f"{path} holds no audio (FFmpeg: {error}); name an audio or video file.") from None
        except DecodeError as error:
            reasons.append(f"{name}: {str(error).rstrip('.')}")
            if isinstance(error, NoDecoder):
                advice = "convert it to WAV or FLAC with the program that made it"
    raise AudioReadError(f"{path} cannot be read as audio ({'; '.join(reasons)}); {advice}.")


def _without_first(blocks: Iterator[Samples], count: int) -> Iterator[Samples]:
    for block in blocks:
        rest = block[:, min(count, block.shape[1]) :]
        count -= block.shape[1] - rest.shape[1]
        if rest.shape[1]:
            yield np.ascontiguousarray(rest)
