"""A row of the manifest: a recording that is to be separated."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

__all__ = ["Song", "derived_id", "safe_name", "song_folder"]

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows keeps for devices."""

BYTES_PER_SECOND = {"wav": 176_400, "aif": 176_400, "aiff": 176_400, "flac": 110_000}
"""Bytes in a second of CD-like audio by format, for guessing lengths; any other format counts as lossy, with 256 kbit/s."""

LOSSY_BYTES_PER_SECOND = 32_000


@dataclass(frozen=True)
class Song:
    """``id`` is unique in a catalogue and names the song's outputs; ``uri`` is a path or anything that fsspec opens."""

    id: str
    uri: str
    duration: float | None = None
    """Seconds, if the manifest says so. Decides the order only."""
    size: int | None = None
    """Bytes, if known without opening. Decides the order only."""
    stamp: str | None = None
    """Version of the content, as ``Stamp.text``, if a listing told it; only for deciding what is done before the run."""

    def expected_seconds(self) -> float:
        """Length as far as it can be told without opening the file; 0 if there is no hint."""
        if self.duration is not None:
            return self.duration
        if self.size is None:
            return 0.0
        suffix = self.uri.rsplit(".", 1)[-1].lower()
        return self.size / BYTES_PER_SECOND.get(suffix, LOSSY_BYTES_PER_SECOND)


def safe_name(text: str) -> str:
    """A name for a file or folder on every system: the text itself if that will do, else what is left of it with a checksum.

    Different texts have different names, except for an accident of 2^-40.
    """
    if SAFE.fullmatch(text) and not RESERVED.fullmatch(text) and not text.endswith("."):
        return text
    return f"{_slug(text)}~{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def song_folder(id: str) -> str:
    """Return the folder of a song's outputs, relative to the destination; 65,536 folders share the songs."""
    digest = hashlib.sha256(id.encode("utf-8", "surrogateescape")).hexdigest()
    return f"songs/{digest[:2]}/{digest[2:4]}/{safe_name(id)}"


def derived_id(uri: str) -> str:
    """The id of a song whose manifest gives none: its file's name without suffix, and a checksum of the address.

    It depends on nothing but ``uri``, so that songs keep their ids when a manifest grows.
    """
    name = re.split(r"[/\\]", uri.rstrip("/\\"))[-1]
    stem = name.rsplit(".", 1)[0] or name
    return f"{_slug(stem)}-{hashlib.sha256(uri.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60] or "song"
