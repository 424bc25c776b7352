"""What a few bytes of a file tell about its length, where the decoders do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["OggEnds", "mp3_declares_length", "ogg_ends"]


@dataclass(frozen=True)
class OggEnds:
    """`cut`: the end of the file is missing. `chained`: its first and its last page belong to different streams."""

    cut: bool
    chained: bool


def ogg_ends(path: Path) -> OggEnds:
    """Compare the first and the last page of an Ogg file (RFC 3533, section 6)."""
    with open(path, "rb") as file:
        first = file.read(27)
        file.seek(max(0, path.stat().st_size - 2**17))  # a page has less than 2**16 bytes
        tail = file.read()
    last = tail[max(0, tail.rfind(b"OggS")) :]
    if len(last) < 27:
        return OggEnds(cut=True, chained=False)
    # Byte 5: 4 marks a stream's last page. Bytes 14 to 17: the stream's number. Byte 26: segments, then their lengths.
    complete = len(last) >= 27 + last[26] + sum(last[27 : 27 + last[26]])
    return OggEnds(cut=not (complete and last[5] & 4), chained=first[14:18] != last[14:18])


def mp3_declares_length(path: Path) -> bool:
    """Whether the first MPEG frame, after the ID3v2 tags, holds a Xing, Info or VBRI header."""
    with open(path, "rb") as file:
        start = 0
        while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            start = file.tell() + size
            file.seek(start)
        file.seek(start)
        beginning = file.read(4096)
    return any(mark in beginning for mark in (b"Xing", b"Info", b"VBRI"))
