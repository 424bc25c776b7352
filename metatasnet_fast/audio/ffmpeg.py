"""Decode everything that libsndfile does not read, with FFmpeg's libraries inside PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .._extras import require
from .decode import (
    BLOCK,
    CUT_OGG,
    UNMARKED_OGG,
    DecodeError,
    NoAudioStream,
    NoDecoder,
    NoTrack,
    Samples,
    Window,
    decoding,
    hidden_note,
)
from .headers import RECOGNISED_BY, ends_with_tag, mp3_length, ogg_ends, recognise, sample_area, skip_id3

__all__ = ["FFmpegDecoder", "open_container"]

DECLARING = {
    "aiff", "ape", "asf", "au", "avi", "caf", "dsf", "flac", "matroska", "mov", "mpc", "mpc8", "ogg", "tak", "tta", "w64",
    "wav", "webm", "wv", "xwma",
}  # fmt: skip
"""Formats whose headers hold the length of the audio. For other formats FFmpeg guesses the length, from the bit rate or
from the last time stamp."""

MOST_PER_BYTE = 6000
"""Most samples in one byte of a file: a silent FLAC frame has 65,535 in 11 bytes or more."""

MOST_PER_BYTE_MP3 = 24
"""Most samples in one byte of an MP3 file: 576 samples at 24 kHz and 8 kbit/s are 24 bytes."""

SILENT_64_BIT = 2.0**-30
"""Peak below which 64-bit integers are taken to hold values of a shorter type."""


def import_av() -> Any:
    return require("av", "Decoding compressed audio and video")


def open_container(path: Path, stack: contextlib.ExitStack, options: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return PyAV's container of a file; skip ID3v2 tags if FFmpeg does not look for the format after them.

    The container is closed with ``stack``. A playlist opens no other files or addresses; broken tags are read in part.
    """
    av = import_av()
    with open(path, "rb") as file:
        start = skip_id3(file)
        kind = recognise(file.read(RECOGNISED_BY))
    window = Window(path, start if start and kind not in (None, "MPEG audio", "ID3") else 0)
    stack.callback(window.close)
    # From PyAV 19 on, broken tags are always ignored.
    tags = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    return stack.enter_context(av.open(window, options={"protocol_whitelist": "none", **options}, **tags))


class FFmpegDecoder:
    """Decoder by FFmpeg for one audio track, by default the one that the container calls its default.

    Damaged packets are left out and counted. Encoder delay is cut as the container says. Frames with another rate or
    other channels than the first frame are converted to the rate and channels of the first frame.

    Args:
        track: number of the track, from 1.
    """

    tolerance: float = 0.1

    def __init__(self, path: Path, track: int | None = None) -> None:
        self._av = import_av()
        self.notes: list[str] = []
        self._damaged, self._at_end, self._damage = 0, 0, ""
        self._peak_64 = 0.0
        self._changes: list[str] = []
        self._open = contextlib.ExitStack()
        area = sample_area(path)
        hidden = area is not None and area.hidden > 0
        if area is not None and hidden:
            self.notes.append(hidden_note(area))
        try:
            with decoding():
                # FFmpeg can continue after the announced end of a WAV file.
                self._container = open_container(path, self._open, {"ignore_length": "1"} if hidden else {})
                self._begin(path, track)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path, track: int | None) -> None:
        self._stream = self._choose(track)
        formats = set(self._container.format.name.split(","))
        if "ogg" in formats and ((ends := ogg_ends(path)).cut or ends.unmarked):
            self.notes.append(CUT_OGG if ends.cut else UNMARKED_OGG)
        self._frames = self._decode(ends_with_tag(path))
        # The container may have a wrong rate and number of channels (HE-AAC); those of the first frame are right.
        self._first: Any = next(self._frames, None)
        if "flac" in formats:  # the header counts samples; other containers round the length to milliseconds
            self.tolerance = 0.0
        self.sample_rate = int((self._first or self._stream.codec_context).sample_rate or 0)
        if not self.sample_rate:
            # FFmpeg trusts the suffix .flac, and finds nothing in a file of another format.
            raise DecodeError("no header of an audio stream was found")
        self.channels = len(self._first.layout.channels) if self._first is not None else 0
        self.codec = f"{self._container.format.name.split(',')[0]} {self._stream.codec_context.name}"
        self.depth = self._depth()
        self.announced, self.frames = self._announced(path, formats)

    def _choose(self, track: int | None) -> Any:
        streams = self._container.streams.audio
        self.tracks = len(streams)
        if not streams:
            raise NoAudioStream("the container has no audio stream")
        decodable = [stream for stream in streams if stream.codec_context is not None]
        if not decodable:
            raise NoDecoder("no decoder for its codec is installed")
        if track is None:
            best = self._container.streams.best("audio")
            chosen = next((stream for stream in decodable if best and stream.index == best.index), decodable[0])
        elif not 1 <= track <= len(streams):
            raise NoTrack(f"no audio track {track}, of {len(streams)}")
        else:
            chosen = streams[track - 1]
            if chosen.codec_context is None:
                raise NoDecoder(f"no decoder for the codec of track {track} is installed")
        self.track = [stream.index for stream in streams].index(chosen.index) + 1
        if track is None and len(streams) > 1:
            self.notes.append(f"there are {len(streams)} audio tracks; number {self.track} was read")
        return chosen

    def _depth(self) -> str | None:
        name, format = self._stream.codec_context.name, self._stream.codec_context.format
        lossless = name.startswith("pcm_") or name in (
            "alac",
            "flac",
            "wavpack",
            "tta",
            "ape",
            "tak",
            "shorten",
            "wmalossless",
        )
        if not lossless or format is None:
            return None
        bits = format.bytes * 8
        if format.name.startswith(("flt", "dbl")):
            return "float32"
        # Lossless codecs store 24 bits in 32; real 32-bit PCM says so in its name.
        return "int16" if bits <= 16 else "int32" if name.startswith(("pcm_s32", "pcm_s64", "pcm_u32")) else "int24"

    def _announced(self, path: Path, formats: set[str]) -> tuple[int | None, int | None]:
        """Return the fields ``announced`` and ``frames`` of :class:`.Decoder`."""
        size = path.stat().st_size
        if "mp3" in formats:
            header = mp3_length(path)
            if header is None:
                return None, None
            announced, most = header.samples, size * MOST_PER_BYTE_MP3
            cut = header.bytes is not None and header.bytes > size
        else:
            seconds = self._announced_seconds(formats)
            if seconds is None:
                return None, None
            announced, most, cut = int(seconds * self.sample_rate + Fraction(1, 2)), size * MOST_PER_BYTE, False
        if announced == 0:
            return None, None
        if announced <= most:
            return announced, announced
        if cut:  # the file is the beginning of a longer one
            return announced, None
        self.notes.append(f"the header announces {announced} samples, which {size} bytes cannot hold")
        return None, None

    def _announced_seconds(self, formats: set[str]) -> Fraction | None:
        if not formats & DECLARING:
            return None
        if self._stream.duration is not None:
            return int(self._stream.duration) * Fraction(str(self._stream.time_base))
        if self._container.duration is not None and len(self._container.streams) == 1:
            # A container's own duration is that of its longest stream.
            return Fraction(int(self._container.duration), 1_000_000)
        return None

    def _decode(self, tagged: bool) -> Iterator[Any]:
        """Yield the frames. ``tagged`` says that a tag ends the file: damaged packets at the end are then not
        counted."""
        for packet in self._packets():
            try:
                with decoding():
                    frames = self._stream.codec_context.decode(packet)
            except DecodeError as error:
                self._count(error)
                continue
            yield from frames
            if frames and packet is not None and packet.size:
                self._at_end = 0
        if tagged:
            self._damaged -= self._at_end

    def _packets(self) -> Iterator[Any]:
        """Yield the stream's packets. PyAV's last packet is empty: it makes the decoder return the frames that it still
        holds. If damage ends the packets early, None takes the place of the empty packet."""
        packets = iter(self._container.demux(self._stream))
        while True:
            try:
                with decoding():
                    packet = next(packets, None)
            except DecodeError as error:
                self._count(error)
                yield None
                return
            if packet is None:
                return
            yield packet

    def _count(self, error: DecodeError) -> None:
        self._damaged, self._at_end, self._damage = self._damaged + 1, self._at_end + 1, str(error)

    def blocks(self) -> Iterator[Samples]:
        held: list[Samples] = []
        size = 0
        for frame in self._alike():
            with decoding():
                held.append(self._samples(frame))
            size += held[-1].shape[1]
            if size >= BLOCK:
                yield np.concatenate(held, 1)
                held, size = [], 0
        if size:
            yield np.concatenate(held, 1)
        if self._damaged:
            self.notes.append(f"damaged packets were left out: {self._damaged} (FFmpeg: {self._damage})")
        if self._changes:
            self.notes.append(
                f"the stream changes to {' and '.join(dict.fromkeys(self._changes))}, "
                f"which was converted to {_named(self.sample_rate, self.channels)}"
            )
        if 0 < self._peak_64 < SILENT_64_BIT:
            self.notes.append(
                "its 64-bit integers hold values of a shorter type, so that it is nearly silent: export it as 16 or 32 bits"
            )

    def _alike(self) -> Iterator[Any]:
        """Yield all frames with the first frame's rate and channels; FFmpeg converts those that differ."""
        converter, before = None, None
        frame = self._first
        while frame is not None:
            kind = (frame.sample_rate, frame.layout.name, frame.format.name)
            if kind != before:
                if converter is not None:
                    yield from self._converted(converter, None)
                converter, before = None, kind
                channels = len(frame.layout.channels)
                if (frame.sample_rate, channels) != (self.sample_rate, self.channels):
                    self._changes.append(_named(frame.sample_rate, channels))
                    first = self._first
                    converter = self._av.AudioResampler(first.format.name, first.layout.name, first.sample_rate)
            yield from [frame] if converter is None else self._converted(converter, frame)
            frame = next(self._frames, None)
        if converter is not None:
            yield from self._converted(converter, None)

    def _converted(self, converter: Any, frame: Any) -> list[Any]:
        with decoding():
            return list(converter.resample(frame))

    def _samples(self, frame: Any) -> Samples:
        """Return a decoded frame as float32 `(channels, n)`, integer formats scaled to [-1, 1)."""
        wide = frame.format.name.startswith("s64")
        if wide or (frame.format.is_planar and self.channels >= 8):
            # PyAV's table of NumPy types has no 64-bit integers, and PyAV 18 crashes on frames with eight or more
            # planes, because it reads past the end of the list. So frames are packed: they have one plane.
            format = "dbl" if wide else "flt"
            [frame] = self._av.AudioResampler(format, frame.layout, frame.sample_rate).resample(frame)
        data: npt.NDArray[Any] = frame.to_ndarray()
        if not frame.format.is_planar:
            data = data.reshape(-1, self.channels).T
        samples: Samples = data.astype(np.float32)
        if wide:
            self._peak_64 = max(self._peak_64, float(np.abs(samples).max(initial=0)))
        elif data.dtype == np.uint8:
            samples = (samples - np.float32(128)) / np.float32(128)
        elif data.dtype.kind == "i":
            samples /= np.float32(2.0 ** (8 * data.dtype.itemsize - 1))
        return samples

    def close(self) -> None:
        self._open.close()


def _named(sample_rate: int, channels: int) -> str:
    return f"{sample_rate} Hz {({1: 'mono', 2: 'stereo'}).get(channels, f'with {channels} channels')}"
