"""Describe the work of a worker: the songs, which are rows of the manifest, and the settings of the run.

Also name the songs and their folders at the destination.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..separation.devices import parse_device

__all__ = ["Identity", "Settings", "Song", "derived_id", "digest", "safe_name", "song_folder"]

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows keeps for devices."""

BYTES_PER_SECOND = {"wav": 176_400, "aif": 176_400, "aiff": 176_400, "flac": 110_000}
"""Bytes per second of audio of CD quality, by format, to guess lengths. Any other format counts as lossy."""

LOSSY_BYTES_PER_SECOND = 32_000
"""256 kbit/s."""


@dataclass(frozen=True)
class Song:
    """A song. Its ``id`` is unique in a catalogue and names the outputs; ``uri`` is a path or URI for fsspec."""

    id: str
    uri: str
    duration: float | None = None
    """Length in seconds, if the manifest has it. It decides only the order of the songs."""
    size: int | None = None
    """Size in bytes, if it is known without opening the file. It decides only the order of the songs."""
    stamp: str | None = None
    """Version of the content, as ``Stamp.text``, if a listing has it. It decides only whether the song is done."""

    def expected_seconds(self) -> float:
        """Return the length in seconds, or a guess from the size, without opening the file; 0 if both are unknown."""
        if self.duration is not None:
            return self.duration
        if self.size is None:
            return 0.0
        suffix = self.uri.rsplit(".", 1)[-1].lower()
        return self.size / BYTES_PER_SECOND.get(suffix, LOSSY_BYTES_PER_SECOND)


def digest(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text, which may be a file name that is not valid UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def safe_name(text: str) -> str:
    """Return a name that a file or folder may have on every system: the text itself if it may, else its safe part and a
    checksum.

    Two different texts get the same name with a probability of 2^-40 at most. Two names may differ in case only.
    """
    if SAFE.fullmatch(text) and not RESERVED.fullmatch(text) and not text.endswith("."):
        return text
    return f"{_slug(text)}~{digest(text)[:10]}"


def song_folder(id: str) -> str:
    """Return the folder of a song's outputs, relative to the destination. The songs are shared out among 65,536
    folders."""
    place = digest(id)
    return f"songs/{place[:2]}/{place[2:4]}/{safe_name(id)}"


def derived_id(uri: str) -> str:
    """Return the id of a song that has none in the manifest: the name of its file without suffix, and a checksum of
    ``uri``.

    The id depends only on ``uri``, so that songs keep their ids when a manifest grows.
    """
    name = re.split(r"[/\\]", uri.rstrip("/\\"))[-1]
    stem = name.rsplit(".", 1)[0] or name
    return f"{_slug(stem)}-{digest(uri)[:10]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60] or "song"


FORMATS = ("flac", "ogg", "wav", "mp3")

MOST = {"threads": 4096, "batch_size": 65536, "songs_in_flight": 4096, "attempts": 1000}
"""Largest values of settings. A larger value must be a typing error: it would make that many threads or list
entries."""


@dataclass(frozen=True)
class Settings:
    """All options of a run that its workers need. The settings are sent to other processes and machines."""

    model: str
    """A checkpoint file or folder, a bundled model's name or a hub id."""
    revision: str | None = None
    offline: bool = False
    stems: dict[str, tuple[str, ...]] | None = None
    """The stems that are added up in each output, by the output's name; None for one output for each of the model's
    stems."""
    format: str = "flac"
    subtype: str | None = None
    """Sample depth as ``AudioWriter`` names it; None for the format's default."""
    mixture_consistency: bool = False
    partial: bool = False
    """If less than 95 % of a file can be decoded, separate that part; otherwise such a song fails."""
    dtype: str = "auto"

    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    """Number of cores that a worker may use; None for all cores of its process."""
    batch_size: int | None = None
    """Windows in a batch; None chooses it by the free memory. If memory runs out, it is halved for the whole run."""
    songs_in_flight: int | None = None
    """Number of songs that a worker has open at once; None chooses it by the device and the cores."""
    memory: int | None = None
    """Bytes of memory that the signals of a worker's songs in flight may take together; None for a quarter of the free
    memory. Further signals are kept in files in TMPDIR."""
    max_hours: float = 12.0
    """Largest length of a recording in hours; longer recordings fail."""
    attempts: int = 3
    """Largest number of attempts at a song whose failure may be temporary."""
    overwrite: bool = False
    """Also separate songs that are already done."""
    retry_failed: bool = False
    """Also try songs that failed before for a lasting reason."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"Unknown format {self.format!r}; choose one of {', '.join(FORMATS)}.")
        if self.device != "auto":
            parse_device(self.device)
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} must be at least 1 and at most {most}, got {value}.")
        if not 0 < self.max_hours < math.inf:
            raise ConfigError(f"max_hours must be a number above 0, got {self.max_hours}.")
        if (self.memory or 0) < 0:
            raise ConfigError(f"memory must not be negative, got {self.memory}.")
        for stem in self.stems or ():
            if safe_name(stem) != stem:
                raise ConfigError(f"The stem {stem!r} cannot name a file: use letters, digits, dots, - and _.")


@dataclass(frozen=True)
class Identity:
    """The model and the settings for which a song is done: all that decides the outputs, apart from the input's
    content.

    Device, backend and batch size are not part of an identity: they change results within the tolerance only.
    """

    model_name: str
    model_sha256: str
    """Checksum of the weights and the configuration, see ``model_checksum``."""
    settings: dict[str, Any]
    """``mode``, ``window`` (latent frames), ``precision``, ``stems``, ``format``, ``subtype``, ``mixture_consistency``."""

    @property
    def key(self) -> str:
        """Return a checksum of the model and settings, 32 hexadecimal digits."""
        settings = digest(json.dumps(self.settings, sort_keys=True))
        return digest(f"{self.model_sha256} {settings}")[:32]
