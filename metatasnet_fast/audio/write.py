"""Write audio files, whole or block by block: a file gets its name only when it is complete."""

from __future__ import annotations

import errno
import functools
import io
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._io import sync
from ..errors import AudioFormatError, AudioWriteError, ShapeError
from .decode import VORBIS_TO_WAV, import_soundfile, reason_of
from .tags import Tags, write_tags

__all__ = ["AudioWriter", "WrittenAudio", "closest_subtype", "write_audio"]

# libsndfile's names; the first subtype of a format is its default.
SUBTYPES = {
    "wav": {"int16": "PCM_16", "int24": "PCM_24", "int32": "PCM_32", "float32": "FLOAT"},
    "flac": {"int16": "PCM_16", "int24": "PCM_24"},
    "ogg": {"vorbis": "VORBIS"},
    "mp3": {"mp3": "MPEG_LAYER_III"},
}
MAX_CHANNELS = {"wav": 1024, "flac": 8, "ogg": 255, "mp3": 2}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# libsndfile 1.2 crashes the process in the Vorbis encoder at 250 kHz.
OGG_MAX_RATE = 192000
FLAC_MAX_RATE = 655350
# The sizes in a WAV file have 32 bits; some room is left for its header.
WAV_MAX_BYTES = 2**32 - 2**16
BYTES = {"int16": 2, "int24": 3, "int32": 4, "float32": 4}

BLOCK = 2**15  # libsndfile's Vorbis encoder copies its input to the stack
SF_SET_ADD_PEAK_CHUNK = 0x1050


class _File(io.FileIO):
    """A file that keeps the first error of the disk, since libsndfile does not report an error of its last writes."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:  # a disk that becomes full first accepts a part; only the next attempt returns the reason
                written = super().write(left)
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                left = left[written:]
        except OSError as error:
            self.failure = self.failure or error
            return 0
        return len(data)


@dataclass(frozen=True)
class WrittenAudio:
    """The result of writing: `frames` per channel, and how many samples an integer format had to clip."""

    path: Path
    frames: int
    clipped_samples: int


class AudioWriter:
    """Writer of an audio file block by block, with memory for one block.

        with AudioWriter("drums.flac", 44100, channels=2) as writer:
            writer.write(block)                                             # (channels, n)

    The samples go to a hidden file in the same folder. When the `with` statement ends, that file is flushed to disk and
    takes its name, replacing what was there; when it ends with an exception, it is removed and nothing has changed.

    `format`: "wav", "flac", "ogg" (Vorbis) or "mp3"; by default what the name ends in. `subtype`: "int16" (the default)
    or "int24" for wav and flac, "int32" and "float32" for wav. Full scale is 1. Integer formats round to the nearest step,
    2^-15, 2^-23 or 2^-31; what then is outside -1 ... 1 - step is clipped, never rescaled, and counted in
    `clipped_samples`. ogg and mp3 use their encoders' default quality. `frames`: the length to come, if it is known;
    then a recording too long for the format is refused before the first block. `tags`: tags from `read_tags`, to write
    into the file. More than two channels are in WAV's order (front left, right, centre, low frequencies, back, side) in
    every format. Equal samples make equal wav, flac and mp3 files; ogg files hold a random serial number.

    Raises `AudioFormatError` for rates, channels or lengths that the format cannot hold, `AudioWriteError` for NaN or
    infinite samples, no samples at all and errors of the system, `ShapeError` for blocks of another shape or dtype.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        *,
        format: str | None = None,
        subtype: str | None = None,
        frames: int | None = None,
        tags: Tags | None = None,
    ) -> None:
        self.path = Path(path)
        self.sample_rate, self.channels = sample_rate, channels
        self.format = _format(self.path, format)
        self.subtype = _subtype(self.format, subtype)
        _check_limits(self.format, sample_rate, channels)
        self._tags = tags or Tags()
        self._check_size(frames or 0)
        self.frames = 0
        self.clipped_samples = 0
        self._sf = import_soundfile()
        self._sound: Any = None
        # A name may have 255 bytes, and a character takes up to four.
        self._part = self.path.with_name(f".{self.path.name[:60]}.{secrets.token_hex(4)}.part")

    def __enter__(self) -> AudioWriter:
        if os.path.isdir(self.path):
            raise AudioWriteError(f"{self.path} is a directory; name a file in it.")
        try:
            # "x" refuses an existing file and gives the usual permissions, which a file of ``tempfile`` would not have.
            self._file = _File(self._part, "x+b")
        except OSError as error:
            raise self._refused(error) from error
        self._thread = ThreadPoolExecutor(1)
        try:
            self._in_thread(self._open)
        except (self._sf.LibsndfileError, OSError) as error:
            self._discard()
            raise self._refused(error) from error
        except BaseException:
            self._discard()
            raise
        if self.subtype == "float32":
            # This chunk would hold the time of writing, so that equal samples would give different files.
            self._sf._snd.sf_command(self._sound._file, SF_SET_ADD_PEAK_CHUNK, self._sf._ffi.NULL, 0)
        return self

    def _open(self) -> None:
        subtype = SUBTYPES[self.format][self.subtype]
        self._sound = self._sf.SoundFile(
            self._file, "w", self.sample_rate, self.channels, format=self.format.upper(), subtype=subtype
        )

    def _in_thread(self, call: Callable[[], Any]) -> None:
        """Call libsndfile; raise the file's error if there is one, else libsndfile's.

        The call runs in a separate thread: libsndfile calls Python to write, and Ctrl-C in that callback would be lost.
        """
        error = self._thread.submit(call).exception()
        if self._file.failure:
            raise self._file.failure
        if error:
            raise error

    def write(self, block: torch.Tensor) -> None:
        """Append `block` (channels, n), float32 or float64, from any device."""
        if self._sound is None or self._sound.closed:
            raise RuntimeError("An AudioWriter writes inside its `with` statement only.")
        if block.dim() != 2 or block.shape[0] != self.channels or not block.is_floating_point():
            raise ShapeError(
                f"A block of {self.channels} channels of float samples is needed, "
                f"got shape {tuple(block.shape)} of {block.dtype}."
            )
        self._check_size(self.frames + block.shape[1])
        block = block.detach().cpu()
        for first in range(0, block.shape[1], BLOCK):
            part = block[:, first : first + BLOCK]
            samples = part.numpy() if part.dtype == torch.float64 else part.float().numpy()
            if not np.isfinite(samples).all():
                raise AudioWriteError(f"The samples for {self.path} hold NaN or infinity; nothing was written.")
            encoded = self._encoded(samples)
            try:
                self._in_thread(functools.partial(self._sound.write, encoded))
            except (self._sf.LibsndfileError, OSError) as error:
                raise self._refused(error) from error
        self.frames += block.shape[1]

    def _check_size(self, frames: int) -> None:
        most = WAV_MAX_BYTES - len(self._tags.cover or b"")
        if self.format == "wav" and frames * self.channels * BYTES[self.subtype] > most:
            raise AudioFormatError(f"{self.path} would exceed the 4 GiB that a WAV file can hold; write flac.")

    def _encoded(self, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert samples `(channels, n)` to `(n, channels)`: to integers for integer subtypes, else to float32."""
        if self.format == "ogg" and self.channels in VORBIS_TO_WAV:
            samples = samples[np.argsort(VORBIS_TO_WAV[self.channels])]
        if not self.subtype.startswith("int"):
            return np.ascontiguousarray(samples.T, dtype=np.float32)
        bits = 8 * BYTES[self.subtype]
        scale = 2.0 ** (bits - 1)
        steps = np.rint(samples.T.astype(np.float64) * scale)
        self.clipped_samples += int(np.count_nonzero((steps < -scale) | (steps > scale - 1)))
        steps = np.clip(steps, -scale, scale - 1)
        if bits == 16:
            return np.ascontiguousarray(steps, dtype=np.int16)
        # libsndfile uses the upper 24 of 32 bits.
        return np.ascontiguousarray(steps.astype(np.int32) * (1 << 32 - bits))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._discard()
            return
        if self.frames == 0:
            self._discard()
            raise AudioWriteError(f"There are no samples to write to {self.path}; leave the file out.")
        try:
            self._in_thread(self._sound.close)
            self._release()
            write_tags(self._part, self.format, self._tags)
            sync(self._part)
            os.replace(self._part, self.path)
            sync(self.path.parent)
        except (self._sf.LibsndfileError, OSError) as failure:
            self._discard()
            raise self._refused(failure) from failure
        except BaseException:  # an interrupt during the wait for the disk
            self._discard()
            raise

    def _release(self) -> None:
        """Close the encoder and the file, if the file is open; the encoder's errors are ignored."""
        if not self._file.closed:
            self._thread.submit(lambda: self._sound and self._sound.close())
            self._thread.shutdown()
            self._file.close()

    def _discard(self) -> None:
        try:
            self._release()
        finally:
            self._part.unlink(missing_ok=True)

    def _refused(self, error: Exception) -> AudioWriteError:
        return AudioWriteError(
            f"{self.path} cannot be written ({reason_of(error)}); check that its folder exists, "
            "that it may be written to, and that the disk has room."
        )


def write_audio(
    path: str | os.PathLike[str],
    samples: torch.Tensor,
    sample_rate: int,
    format: str | None = None,
    subtype: str | None = None,
) -> WrittenAudio:
    """Write `samples` (channels, n) or (n,) to `path`; formats, subtypes, clipping and errors as in `AudioWriter`."""
    if samples.dim() == 1:
        samples = samples[None]
    if samples.dim() != 2:
        raise ShapeError(f"Samples of shape (channels, n) are needed, got {tuple(samples.shape)}.")
    with AudioWriter(path, sample_rate, samples.shape[0], format=format, subtype=subtype) as writer:
        writer.write(samples)
    return WrittenAudio(writer.path, writer.frames, writer.clipped_samples)


def closest_subtype(format: str, depth: str | None) -> str | None:
    """Return the subtype that holds samples of a depth, else the format's last (widest) subtype.

    Return None, for the default subtype, if the depth is None or the format has only one subtype.
    """
    known = SUBTYPES.get(format, {})
    if depth is None or len(known) == 1:
        return None
    return depth if depth in known else list(known)[-1]


def _format(path: Path, format: str | None) -> str:
    name = (path.suffix[1:] if format is None else format).lower()
    if name not in SUBTYPES:
        raise AudioFormatError(
            f"Cannot write {name or 'a name without an ending'!r}; choose one of {', '.join(SUBTYPES)}."
        )
    return name


def _subtype(format: str, subtype: str | None) -> str:
    known = SUBTYPES[format]
    if subtype is None:
        return next(iter(known))
    if subtype not in known:
        elsewhere = [other for other, kinds in SUBTYPES.items() if subtype in kinds]
        hint = f", or the format {' or '.join(elsewhere)}" if elsewhere else ""
        raise AudioFormatError(f"{format} files cannot hold {subtype!r} samples; use {' or '.join(known)}{hint}.")
    return subtype


def _check_limits(format: str, sample_rate: int, channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS[format]:
        raise AudioFormatError(
            f"{format} files hold 1 to {MAX_CHANNELS[format]} channels, not {channels}; "
            "use wav, or write the channels to several files."
        )
    if int(sample_rate) != sample_rate or sample_rate < 1:
        raise AudioFormatError(f"A sample rate must be a positive whole number of Hz, got {sample_rate!r}.")
    if format == "mp3" and sample_rate not in MP3_RATES:
        raise AudioFormatError(
            f"mp3 files cannot hold {sample_rate} Hz; use wav or flac, or resample to 48000 Hz or another of "
            f"{', '.join(map(str, MP3_RATES[:-1]))}."
        )
    if format == "ogg" and sample_rate > OGG_MAX_RATE:
        raise AudioFormatError(f"ogg files cannot hold {sample_rate} Hz, at most {OGG_MAX_RATE}; use wav or flac.")
    if format == "flac" and (sample_rate > FLAC_MAX_RATE or (sample_rate > 0xFFFF and sample_rate % 10)):
        raise AudioFormatError(
            f"flac files cannot hold {sample_rate} Hz, above 65535 Hz only multiples of 10 to {FLAC_MAX_RATE}; use wav."
        )
