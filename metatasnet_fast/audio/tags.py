"""Read title, artist, cover and other tags from a recording with FFmpeg; write tags into its stems with mutagen."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._extras import require
from ..errors import AudioWriteError
from .decode import DecodeError, decoding
from .ffmpeg import open_container

__all__ = ["Tags", "read_tags", "write_tags"]

NAMES = {
    "title": ("TITLE", "TIT2"),
    "artist": ("ARTIST", "TPE1"),
    "album": ("ALBUM", "TALB"),
    "album_artist": ("ALBUMARTIST", "TPE2"),
    "composer": ("COMPOSER", "TCOM"),
    "genre": ("GENRE", "TCON"),
    "date": ("DATE", "TDRC"),
    "track": ("TRACKNUMBER", "TRCK"),
    "disc": ("DISCNUMBER", "TPOS"),
    "publisher": ("ORGANIZATION", "TPUB"),
    "copyright": ("COPYRIGHT", "TCOP"),
    "comment": ("COMMENT", "COMM"),
}
"""FFmpeg's name of each tag -> its name in Vorbis comments (FLAC, Ogg), and its ID3 frame (MP3, WAV)."""

IMAGES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}

ATTACHED_PICTURE = 0x400
"""FFmpeg's flag for a stream that is a cover."""

LARGEST_COVER = 2**24 - 2**12
"""Largest cover in bytes: a FLAC file stores the size of a picture in 24 bits."""


@dataclass(frozen=True)
class Tags:
    """Tags of a file: texts by FFmpeg's names, such as ``album_artist``, and the bytes of the cover, such as a JPEG."""

    text: Mapping[str, str] = field(default_factory=dict)
    cover: bytes | None = None

    @property
    def image(self) -> str | None:
        """The cover's type, such as ``image/jpeg``; None if there is no cover, or its type is unknown."""
        return next((type for magic, type in IMAGES.items() if (self.cover or b"").startswith(magic)), None)


def read_tags(path: Path) -> Tags:
    """Return the tags of an audio file; empty tags if the file cannot be read."""
    with contextlib.ExitStack() as stack:
        try:
            with decoding():
                container = open_container(path, stack)
        except DecodeError:
            return Tags()
        text: dict[str, str] = {}
        for part in [*container.streams.audio[:1], container]:
            text.update({name.lower(): value.replace("\0", "") for name, value in part.metadata.items()})
        return Tags({name: text[name] for name in NAMES if text.get(name)}, _cover(container))


def _cover(container: Any) -> bytes | None:
    for stream in container.streams.video:
        if stream.disposition.value & ATTACHED_PICTURE:
            with contextlib.suppress(DecodeError), decoding():
                picture = bytes(next(container.demux(stream)))
                return picture if 0 < len(picture) <= LARGEST_COVER else None
    return None


def write_tags(path: Path, format: str, tags: Tags) -> None:
    """Write tags into a complete file of a format that ``AudioWriter`` writes.

    Raises:
        AudioWriteError: if mutagen cannot write the tags into this file.
        OSError: if the system refuses to write the file.
    """
    if not tags.text and tags.image is None:
        return
    mutagen = require("mutagen", "Writing tags")
    try:
        (_write_comments if format in ("flac", "ogg") else _write_id3)(path, format, tags)
    except mutagen.MutagenError as error:
        if isinstance(error.__cause__ or error.__context__, OSError):
            raise (error.__cause__ or error.__context__) from error
        raise AudioWriteError(f"The tags of {path} cannot be written ({error}); leave them out.") from error


def _write_comments(path: Path, format: str, tags: Tags) -> None:
    flac = require("mutagen.flac", "Writing tags")
    file = flac.FLAC(path) if format == "flac" else require("mutagen.oggvorbis", "Writing tags").OggVorbis(path)
    for name, value in tags.text.items():
        file[NAMES[name][0]] = value
    if tags.image is not None:
        picture = flac.Picture()
        picture.type, picture.mime, picture.data = 3, tags.image, tags.cover
        if format == "flac":
            file.add_picture(picture)
        else:
            file["metadata_block_picture"] = [base64.b64encode(picture.write()).decode("ascii")]
    file.save()


def _write_id3(path: Path, format: str, tags: Tags) -> None:
    id3 = require("mutagen.id3", "Writing tags")
    file = (
        require("mutagen.mp3", "Writing tags").MP3(path)
        if format == "mp3"
        else require("mutagen.wave", "Writing tags").WAVE(path)
    )
    if file.tags is None:
        file.add_tags()
    for name, value in tags.text.items():
        frame = getattr(id3, NAMES[name][1])
        more = {"lang": "XXX", "desc": ""} if name == "comment" else {}
        file.tags.add(frame(encoding=3, text=[value], **more))
    if tags.image is not None:
        file.tags.add(id3.APIC(encoding=3, mime=tags.image, type=3, desc="", data=tags.cover))
    file.save()
