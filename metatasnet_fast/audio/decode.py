"""The two decoders: libsndfile for PCM, FLAC and Ogg, FFmpeg (inside PyAV) for everything else.

MP3 and chained Ogg go to FFmpeg although libsndfile knows them: libsndfile 1.2 stops at an estimated length in
variable-rate MP3 without a length header, and after the first of several chained streams, and reports neither. Single
Ogg streams stay with libsndfile, because FFmpeg 8 loses or adds up to 256 samples at the end of short ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from metatasnet_fast.audio.headers import mp3_declares_length, ogg_ends

from .._extras import require

__all__ = [
    "VORBIS_TO_WAV",
    "DecodeError",
    "Decoder",
    "FFmpegDecoder",
    "NoAudioStream",
    "NoDecoder",
    "SoundFileDecoder",
    "import_soundfile",
    "system_name",
]

Samples = npt.NDArray[np.float32]

BLOCK = 2**15

# Raw streams declare no length; FFmpeg guesses one from the bit rate.
GUESSED_LENGTH = {"aac", "ac3", "dts", "eac3", "loas", "mp3", "truehd"}


CUT_OGG = "the file ends early: its last Ogg page is cut off or missing"

# Vorbis and Opus have the centre second and the low frequencies last (Vorbis I specification, 4.3.9); everything else
# here, like WAV: front left, right, centre, low frequencies, back, side. WAV channel k is Vorbis channel [k].
VORBIS_TO_WAV = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}


class DecodeError(Exception):
    """Why a decoder cannot go on; callers turn it into a warning or a typed error."""


class NoAudioStream(DecodeError):
    """The container can be read and has no audio in it."""


class NoDecoder(DecodeError):
    """There is audio, of a codec that this FFmpeg cannot decode."""


class Decoder(Protocol):
    """One open file. `frames` is the length it declares, `tolerance` how far that may be from the truth, in seconds."""

    sample_rate: int
    channels: int
    codec: str
    frames: int | None
    tolerance: float
    notes: list[str]

    def blocks(self) -> Iterator[Samples]:
        """Blocks `(channels, n)`, n > 0. Raises `DecodeError` where decoding cannot go on."""

    def close(self) -> None: ...


def import_soundfile() -> Any:
    return require("soundfile", "Reading and writing audio")


def import_av() -> Any:
    return require("av", "Decoding compressed audio and video")


def system_name(path: Path) -> str | bytes:
    """A file name for soundfile, which refuses names that are not UTF-8 unless it gets them as bytes."""
    return str(path) if os.name == "nt" else os.fsencode(path)


class SoundFileDecoder:
    tolerance = 0.0

    def __init__(self, path: Path) -> None:
        sf = import_soundfile()
        self._error = sf.LibsndfileError
        try:
            self._file = sf.SoundFile(system_name(path))
        except (sf.LibsndfileError, TypeError) as error:  # TypeError: ".raw", which has no header to read
            raise DecodeError(getattr(error, "error_string", str(error))) from error
        self.codec = f"{self._file.format} {self._file.subtype}"
        ends = ogg_ends(path) if self._file.format == "OGG" else None
        # A FLAC stream of unknown length has 2**63 - 1 frames here, and its end looks like an error.
        if self._file.format == "MP3" or (ends and ends.chained) or self._file.frames > 2**62:
            self._file.close()
            raise DecodeError(f"{self.codec} is left to FFmpeg")
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.frames: int | None = int(self._file.frames)
        self._order = list(VORBIS_TO_WAV.get(self.channels, range(self.channels))) if ends else None
        self.notes: list[str] = [CUT_OGG] if ends and ends.cut else []
        # libsndfile reduces the length of a cut-off WAV or AIFF silently; its log tells. Sizes near 2**31 and 2**32
        # stand for "unknown" in files that were written to a pipe.
        cut = re.search(r"^ *(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if cut and int(cut[2]) < int(cut[1]) < 0x7FFFF000:
            self.notes.append(f"the file ends early: {cut[1]} bytes of samples are announced, {cut[2]} are there")

    def blocks(self) -> Iterator[Samples]:
        while True:
            try:
                block = self._file.read(BLOCK, dtype="float32", always_2d=True)
            except self._error as error:
                raise DecodeError(f"libsndfile: {error}") from error
            if len(block) == 0:
                return
            yield np.ascontiguousarray(block.T if self._order is None else block.T[self._order])

    def close(self) -> None:
        self._file.close()


class FFmpegDecoder:
    """The first audio stream. Damaged packets are left out and counted; encoder delay is cut as the container says."""

    tolerance = 0.1

    def __init__(self, path: Path) -> None:
        av = import_av()
        self._error = av.FFmpegError
        self._file = open(path, "rb")
        try:
            # A playlist must not make FFmpeg open other files or addresses; broken tags must not stop us.
            self._container = av.open(self._file, metadata_errors="ignore", options={"protocol_whitelist": "none"})
        except (av.FFmpegError, ValueError) as error:
            self._file.close()
            raise DecodeError(_reason(error)) from error
        if not self._container.streams.audio:
            self.close()
            raise NoAudioStream("the container has no audio stream")
        self._stream = self._container.streams.audio[0]
        if self._stream.codec_context is None:
            self.close()
            raise NoDecoder("no decoder for its codec is installed")
        self._formats = set(self._container.format.name.split(","))
        self.notes: list[str] = []
        self._damaged = 0
        self._damage = ""
        if "ogg" in self._formats and ogg_ends(path).cut:
            self.notes.append(CUT_OGG)
        self._frames = self._decode()
        # What the container says about rate and channels may be wrong (HE-AAC); the first frame is right.
        self._first = next(self._frames, None)
        if self._first is None and not self._stream.codec_context.sample_rate:
            # FFmpeg believes the name of what is called .flac, and finds nothing in it.
            self.close()
            raise DecodeError("no header of an audio stream was found")
        self.sample_rate = self._first.sample_rate if self._first is not None else 0
        self.channels = len(self._first.layout.channels) if self._first is not None else 0
        self.codec = f"{self._container.format.name.split(',')[0]} {self._stream.codec_context.name}"
        self.frames = self._declared_length(path)

    def _declared_length(self, path: Path) -> int | None:
        if self._formats & GUESSED_LENGTH and not ("mp3" in self._formats and mp3_declares_length(path)):
            return None
        if self._stream.duration is not None:
            return int(self._stream.duration * self._stream.time_base * self.sample_rate + Fraction(1, 2))
        # A container's own duration is that of its longest stream.
        if self._container.duration is not None and len(self._container.streams) == 1:
            return int(Fraction(self._container.duration, 1_000_000) * self.sample_rate + Fraction(1, 2))
        return None

    def _decode(self) -> Iterator[Any]:
        for packet in self._packets():
            try:
                yield from self._stream.codec_context.decode(packet)
            except self._error as error:
                self._damaged, self._damage = self._damaged + 1, _reason(error)
        if self._damaged:
            self.notes.append(f"damaged packets were left out: {self._damaged} (FFmpeg: {self._damage})")

    def _packets(self) -> Iterator[Any]:
        """The stream's packets and, as `demux` does at a proper end, one that makes the decoder give what it holds."""
        try:
            yield from self._container.demux(self._stream)
        except self._error as error:
            self._damaged, self._damage = self._damaged + 1, _reason(error)
            yield None

    def blocks(self) -> Iterator[Samples]:
        held: list[Samples] = []
        size = 0
        frame = self._first
        while frame is not None:
            if frame.sample_rate != self.sample_rate or len(frame.layout.channels) != self.channels:
                if held:
                    yield np.concatenate(held, 1)
                raise DecodeError(
                    f"the stream changes to {frame.sample_rate} Hz with {len(frame.layout.channels)} channels"
                )
            held.append(self._samples(frame))
            size += held[-1].shape[1]
            if size >= BLOCK:
                yield np.concatenate(held, 1)
                held, size = [], 0
            frame = next(self._frames, None)
        if size:
            yield np.concatenate(held, 1)

    def _samples(self, frame: Any) -> Samples:
        """A decoded frame as float32 `(channels, n)`, integer formats scaled to [-1, 1)."""
        if frame.format.is_planar and self.channels >= 8:
            # PyAV 18 reads past the end of such a frame's list of planes, and crashes; packed frames have one plane.
            packed = import_av().AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
            [frame] = packed.resample(frame)
        data: npt.NDArray[Any] = frame.to_ndarray()
        if not frame.format.is_planar:
            data = data.reshape(-1, self.channels).T
        samples: Samples = data.astype(np.float32)
        if data.dtype == np.uint8:
            samples = (samples - np.float32(128)) / np.float32(128)
        elif data.dtype.kind == "i":
            samples /= np.float32(2.0 ** (8 * data.dtype.itemsize - 1))
        return samples

    def close(self) -> None:
        self._container.close()
        self._file.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
