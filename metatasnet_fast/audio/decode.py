"""Decode PCM, FLAC and Ogg with libsndfile; :mod:`metatasnet_fast.audio.ffmpeg` decodes everything else.

MP3 and chained Ogg go to FFmpeg although libsndfile knows them: libsndfile 1.2 stops at an estimated length in
variable-rate MP3 without a length header, and after the first of several chained streams, and reports neither. Single
Ogg streams stay with libsndfile, because FFmpeg 8 loses or adds up to 256 samples at the end of short ones.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .._extras import require
from .headers import SampleArea, flac_samples, ogg_ends, sample_area

__all__ = [
    "BLOCK", "CUT_OGG", "DEPTHS", "UNMARKED_OGG", "VORBIS_TO_WAV", "DecodeError", "Decoder", "MoreSamples",
    "NoAudioStream", "NoDecoder", "NoTrack", "Samples", "SoundFileDecoder", "Window", "decoding", "hidden_note",
    "import_soundfile", "reason_of", "system_name",
]  # fmt: skip

Samples = npt.NDArray[np.float32]

BLOCK = 2**15

CUT_OGG = "the file ends early: its last Ogg page is cut off or missing"
UNMARKED_OGG = (
    "the last Ogg page is not marked as the last one of its stream: if the file was cut there, the rest is missing"
)

# Vorbis and Opus have the centre second and the low frequencies last (Vorbis I specification, 4.3.9). All other formats
# here use the order of WAV: front left, right, centre, low frequencies, back, side. Of n channels, WAV's channel k is
# Vorbis's channel VORBIS_TO_WAV[n][k].
VORBIS_TO_WAV = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}

DEPTHS = {
    **dict.fromkeys(("PCM_U8", "PCM_S8", "PCM_16", "ULAW", "ALAW", "ALAC_16"), "int16"),
    **dict.fromkeys(("PCM_24", "ALAC_20", "ALAC_24"), "int24"),
    **dict.fromkeys(("PCM_32", "ALAC_32"), "int32"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "float32"),
}
"""For each of libsndfile's subtypes, the smallest depth that holds the samples; lossy subtypes are left out."""

WIDTHS = {
    "PCM_U8": 1,
    "PCM_S8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
"""Bytes per sample, for the subtypes that can be read without a header."""


class DecodeError(Exception):
    """A decoder cannot continue; callers turn this into a warning or a typed error."""


class MoreSamples(DecodeError):
    """The decoder stopped at the length in the header, but the file has more samples."""


class NoAudioStream(DecodeError):
    """The container can be read, but has no audio."""


class NoTrack(DecodeError):
    """The container has audio, but no track of the requested number."""


class NoDecoder(DecodeError):
    """The audio has a codec that this FFmpeg cannot decode."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turn any error that a library raises in the block into a `DecodeError`. MemoryError passes unchanged, and so do
    AttributeError and NameError, which are errors of our code.

    Libraries raise more types than they document: OSError, ValueError, TypeError and AssertionError were all seen.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        if type(error) is MemoryError or isinstance(error, (AttributeError, NameError)):
            raise
        raise DecodeError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return the error message of a library in one line, without file names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".") or type(error).__name__


def hidden_note(area: SampleArea) -> str:
    return f"the header announces {area.announced} bytes of samples, {area.there} are there"


class Decoder(Protocol):
    """Interface of the decoders. A decoder is a file that is open."""

    sample_rate: int
    channels: int
    codec: str
    depth: str | None
    """Type of the samples, in the words of ``AudioWriter``; None for lossy codecs."""
    announced: int | None
    """Samples per channel that the header announces; None if the header announces no length."""
    frames: int | None
    """``announced``; None also if the file is too small to hold so many samples."""
    tolerance: float
    """Seconds by which the true length may differ from the announced one."""
    tracks: int
    track: int
    """``tracks``: number of audio tracks. ``track``: number of the decoded track, from 1."""
    notes: list[str]

    def blocks(self) -> Iterator[Samples]:
        """Yield blocks `(channels, n)`, n > 0. Raise `DecodeError` if decoding cannot continue."""

    def close(self) -> None: ...


def import_soundfile() -> Any:
    return require("soundfile", "Reading and writing audio")


def system_name(path: Path) -> str | bytes:
    """Return a file name for soundfile: as bytes (except on Windows), since names may be no valid UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


class Window:
    """A file without its first ``start`` bytes, for libraries that read through Python but cannot pass on Python's
    exceptions."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.name = str(path)  # FFmpeg uses the name if the content is ambiguous
        self._file = open(path, "rb")
        self._start = start
        self._file.seek(start)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place as Python's files do; return -1 for a place before the start or an unknown ``whence``."""
        if whence == os.SEEK_SET:
            offset += self._start
        elif whence == os.SEEK_CUR:
            offset += self._file.tell()
        elif whence == os.SEEK_END:
            offset += os.fstat(self._file.fileno()).st_size
        else:
            return -1
        if offset < self._start:
            return -1
        try:
            return self._file.seek(offset) - self._start
        except (OSError, OverflowError):  # beyond the longest possible file
            return -1

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


class SoundFileDecoder:
    """Decoder by libsndfile, for PCM in WAV and similar formats, FLAC, and Ogg with one stream."""

    tolerance: float = 0.0
    tracks: int = 1
    track: int = 1

    def __init__(self, path: Path) -> None:
        sf = import_soundfile()
        with decoding():
            self._file = sf.SoundFile(system_name(path))
        self._window: Window | None = None
        self.notes: list[str] = []
        format, subtype = self._file.format, self._file.subtype
        self.codec = f"{format} {subtype}"
        ends = ogg_ends(path) if format == "OGG" else None
        # A FLAC stream of unknown length has 2**63 - 1 frames here, and its end looks like an error.
        if format == "MP3" or (ends and (ends.chained or ends.early)) or self._file.frames > 2**62:
            self._file.close()
            raise DecodeError(f"{self.codec} is left to FFmpeg")
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.depth: str | None = DEPTHS.get(subtype)
        self.announced: int | None = int(self._file.frames)
        self.frames: int | None = self.announced
        self._order = list(VORBIS_TO_WAV.get(self.channels, range(self.channels))) if ends else None
        if ends and (ends.cut or ends.unmarked):
            self.notes.append(CUT_OGG if ends.cut else UNMARKED_OGG)
        if subtype in ("VORBIS", "OPUS", "MPEG_LAYER_III"):
            self.tolerance = 0.1
        if subtype == "OPUS":
            # If a stream's count of samples does not start at 0, libsndfile 1.2 begins some samples too late. Seeking
            # to the start mends this.
            self._file.seek(0)
        self._unread = format == "FLAC" and (flac_samples(path) or 0) > self._file.frames
        area = sample_area(path)
        if area is not None:
            self._compare_sizes(sf, path, area)

    def _compare_sizes(self, sf: Any, path: Path, area: SampleArea) -> None:
        """Compare the header with the file's size; where they differ, trust the file's size."""
        subtype = self._file.subtype
        if area.announced is not None and area.missing:
            # If samples have no fixed width, the announced number is estimated in proportion to the bytes.
            width = self.channels * WIDTHS.get(subtype, 0) or max(1.0, area.there / max(1, self._file.frames))
            self.announced = int(area.announced / width)
        if subtype not in WIDTHS:
            if area.hidden:
                self._file.close()
                raise DecodeError("its header announces too few samples")
            return
        if area.hidden:
            self.notes.append(hidden_note(area))
        if area.there < (self._file.frames + 1) * self.channels * WIDTHS[subtype]:
            return
        endian = self._file.endian
        if endian == "FILE":
            endian = "BIG" if self._file.format in ("AIFF", "AU", "CAF") else "LITTLE"
        self._file.close()
        self._window = Window(path, area.start)
        self._file = sf.SoundFile(self._window, "r", self.sample_rate, self.channels, subtype, endian, "RAW")
        self.frames = self.announced = int(self._file.frames)

    def blocks(self) -> Iterator[Samples]:
        while True:
            with decoding():
                block = self._file.read(BLOCK, dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            yield np.ascontiguousarray(block.T if self._order is None else block.T[self._order])
        if self._unread:
            raise MoreSamples

    def close(self) -> None:
        self._file.close()
        if self._window is not None:
            self._window.close()
