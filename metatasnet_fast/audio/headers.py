"""Find the format and the length of a file from its bytes, where the decoders do not report them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

__all__ = [
    "NOTATIONS", "RECOGNISED_BY", "ends_with_tag", "UNDECODABLE", "Mp3Length", "OggEnds", "SampleArea",
    "flac_samples", "mp3_length", "ogg_ends", "recognise", "sample_area", "skip_id3",
]  # fmt: skip

NAMES = {
    b"RIFF": "RIFF", b"RIFX": "RIFF", b"RF64": "RIFF", b"BW64": "RIFF", b"riff\x2e\x91\xcf\x11": "Wave64",
    b"FORM": "IFF", b"FRM8": "DSDIFF", b"DSD ": "DSF", b"caff": "CAF", b".snd": "AU", b"fLaC": "FLAC", b"OggS": "Ogg",
    b"wvpk": "WavPack", b"MAC ": "Monkey's Audio", b"TTA1": "True Audio", b"TTA2": "True Audio", b"tBaK": "TAK",
    b"MPCK": "Musepack", b"MP+": "Musepack", b"ajkg": "Shorten", b"OFR ": "OptimFROG file", b"LA0": "LA file",
    b"0&\xb2u\x8ef\xcf\x11": "Windows Media", b"\x1aE\xdf\xa3": "Matroska", b"FLV\x01": "Flash video", b".RMF": "RealMedia",
    b"#!AMR": "AMR", b"ADIF": "AAC file with an ADIF header", b"\x0bw": "AC-3", b"\x7f\xfe\x80\x01": "DTS",
    b"Creative Voice File": "VOC", b"NIST_1A": "NIST", b"TWIN97012000": "TwinVQ", b"\x00\x00\x01\xba": "MPEG",
    b"IMPM": "tracker module", b"Extended Module: ": "tracker module", b"MThd": "MIDI file",
}  # fmt: skip
"""Names of formats with sound, by the first bytes of the file."""

NOTATIONS = ("tracker module", "MIDI file")
"""Formats that hold notes for a program to play, not a recording."""

RECOGNISED_BY = 1084
"""Bytes from the start of a file that :func:`recognise` looks at."""

UNDECODABLE = ("AAC file with an ADIF header", "OptimFROG file", "LA file")
"""Formats that no decoder here reads."""

MOD_MARKS = re.compile(rb"M\.K\.|M!K!|FLT[48]|4CHN|6CHN|8CHN|[1-3]\dCH|OCTA|CD81|TDZ\d")

PLACEHOLDER = 0x7FFFF000
"""Sizes from here on mean "unknown": programs that write to a pipe store a value near 2**31 or 2**32."""

CHUNKS = {
    b"LIST", b"list", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"fact", b"PAD ", b"JUNK", b"junk", b"FLLR", b"iXML",
    b"_PMX", b"PEAK", b"acid", b"inst", b"plst", b"DISP", b"umid", b"levl", b"axml", b"chna", b"cart", b"afsp", b"strc",
    b"NAME", b"AUTH", b"ANNO", b"(c) ", b"COMT", b"MARK", b"INST", b"APPL", b"MIDI", b"AESD", b"CHAN", b"info", b"edct",
}  # fmt: skip
"""Names of chunks that may follow the samples of WAV, AIFF and CAF files. They are known by name even if the file ends
inside such a chunk."""

TAGS = (b"ID3", b"3DI", b"TAG", b"APETAGEX", b"LYRICSBEGIN")

CRC8 = [0] * 256
for _byte in range(256):
    _value = _byte
    for _ in range(8):
        _value = (_value << 1 ^ 0x07) & 0xFF if _value & 0x80 else _value << 1
    CRC8[_byte] = _value


def recognise(start: bytes) -> str | None:
    """Return the name of a file's format from the first bytes; None if audio files do not begin so."""
    for magic, name in NAMES.items():
        if start.startswith(magic):
            return name
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "MPEG-4"
    if start[44:48] == b"SCRM" or MOD_MARKS.fullmatch(start[1080:1084]):
        return "tracker module"
    if start[4:8] == b"\xf8\x72\x6f\xba":
        return "TrueHD"
    if len(start) > 376 and start[0] == start[188] == start[376] == 0x47:
        return "MPEG transport stream"
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and start[1] not in (0xFE, 0xFF):
        return "MPEG audio"  # eleven set bits, with which AAC in ADTS begins too
    if len(start) > 1 and start[0] == 0x56 and start[1] & 0xE0 == 0xE0:
        return "AAC"  # in the transport format LATM
    return "ID3" if start.startswith(b"ID3") else None


def skip_id3(file: BinaryIO) -> int:
    """Move to the end of the ID3v2 tags at the start of a file, and return this position."""
    start = 0
    file.seek(0)
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        start = file.tell() + size
        file.seek(start)
    file.seek(start)
    return start


def ends_with_tag(path: Path) -> bool:
    """Return whether an ID3v1, APE or Lyrics3 tag ends a file."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 160))
        tail = file.read()
    return tail[-128:].startswith(b"TAG") or b"APETAGEX" in tail or tail.endswith(b"LYRICS200")


@dataclass(frozen=True)
class OggEnds:
    """Facts from the first and the last pages of an Ogg file (RFC 3533, section 6)."""

    cut: bool
    """The last page is cut off, or the file has no page."""
    unmarked: bool
    """The last page is whole and is not marked as the last one of its stream."""
    chained: bool
    """The first and the last page belong to different streams."""
    early: bool
    """The samples begin before time 0. libsndfile ignores that, and would lose as many samples at the end."""


def ogg_ends(path: Path) -> OggEnds:
    """Compare the first pages of an Ogg file with its last one."""
    with open(path, "rb") as file:
        head = file.read(2**18)
        file.seek(max(0, path.stat().st_size - 2**17))  # a page has less than 2**16 bytes
        tail = file.read()
    last = tail[max(0, tail.rfind(b"OggS")) :]
    if len(last) < 27:
        return OggEnds(cut=True, unmarked=False, chained=False, early=False)
    # In byte 5, the bit of value 4 marks a stream's last page. Bytes 14 to 17 are the stream's number. Byte 26 is the
    # number of segments; the lengths of the segments follow.
    whole = len(last) >= 27 + last[26] + sum(last[27 : 27 + last[26]])
    unmarked = whole and not last[5] & 4
    return OggEnds(not whole, unmarked, chained=head[14:18] != last[14:18], early=_begins_early(head))


def _begins_early(head: bytes) -> bool:
    """Return whether the first page with samples counts far fewer samples per packet than the next page."""
    counts: list[tuple[int, int]] = []
    at = 0
    while len(counts) < 2 and (at := head.find(b"OggS", at)) >= 0 and at + 27 <= len(head):
        (granule,) = struct.unpack_from("<q", head, at + 6)
        lengths = head[at + 27 : at + 27 + head[at + 26]]
        if granule > 0:
            counts.append((granule, sum(length < 255 for length in lengths)))
        at += 27 + len(lengths) + sum(lengths)
    if len(counts) < 2 or head.find(b"\x01vorbis", 0, 64) < 0:
        return False
    (first, packets), (second, more) = counts
    return bool(first + 8192 < (second - first) / max(1, more) * packets)


@dataclass(frozen=True)
class Mp3Length:
    """Length of an MP3 file, from the header in the first frame: samples per channel, and bytes (None if not given)."""

    samples: int
    bytes: int | None


def mp3_length(path: Path) -> Mp3Length | None:
    """Read the Xing, Info or VBRI header after the ID3v2 tags; return None if there is no such header.

    The encoder's delays are subtracted if a Xing or Info header has them.
    """
    with open(path, "rb") as file:
        skip_id3(file)
        head = file.read(4096)
    # An MPEG-1 frame of layer III has 1152 samples, one of MPEG-2 or 2.5 half as many.
    per_frame = 1152 if head[1:2] and head[1] & 0x18 == 0x18 else 576
    found = re.search(rb"(Xing|Info)([\0-\x0f]{4})", head)
    if found:
        flags = int.from_bytes(found[2], "big")
        fields = (1, 4), (2, 4), (4, 100), (8, 4)
        at, values = found.end(), {}
        for flag, length in fields:
            if flags & flag:
                values[flag] = int.from_bytes(head[at : at + 4], "big")
                at += length
        lame = head[at : at + 24]
        delays = int.from_bytes(lame[21:24], "big") if lame[:4] in (b"LAME", b"Lavf", b"Lavc") else 0
        samples = values.get(1, 0) * per_frame - (delays >> 12) - (delays & 0xFFF)
        return Mp3Length(samples, values.get(2)) if samples > 0 else None
    at = head.find(b"VBRI")
    if 0 <= at <= len(head) - 18:
        size, frames = struct.unpack_from(">II", head, at + 10)
        return Mp3Length(frames * per_frame, size)
    return None


@dataclass(frozen=True)
class SampleArea:
    """Place of the samples in a file, in bytes: start, announced size and real size.

    ``announced`` is None if the header leaves the size open. Then the samples reach to the end of the file.
    """

    start: int
    announced: int | None
    there: int

    @property
    def missing(self) -> int:
        """Bytes that are announced but missing."""
        return max(0, (self.announced or 0) - self.there)

    @property
    def hidden(self) -> int:
        """Bytes that exist but are not announced."""
        return 0 if self.announced is None else max(0, self.there - self.announced)


def sample_area(path: Path) -> SampleArea | None:
    """Compare the size of the samples in the header with the size of the file; return None for formats other than WAV,
    AIFF, CAF, AU and Wave64.

    The bytes after the samples, up to the file's end, count as samples unless they are a list of chunks, a tag, or
    zeros.
    """
    with open(path, "rb") as file:
        head, size = file.read(16), path.stat().st_size
        layout = LAYOUTS.get(head[:4])
        if head[:4] == b".snd":
            found: tuple[int, int] | None = (int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big"))
        else:
            found = _find_samples(file, layout, size) if layout else None
        if found is None or not 0 < found[0] < size:
            return None
        start, announced = found
        there = size - start
        if announced >= there and announced >= PLACEHOLDER:
            return SampleArea(start, None, there)
        if announced < there and _is_no_audio(file, start + announced, size, layout):
            there = announced
    return SampleArea(start, announced, there)


@dataclass(frozen=True)
class _Layout:
    """The layout of the chunks of a container."""

    first: int
    """Offset of the first chunk."""
    name: int
    """Bytes of a chunk's name."""
    count: int
    """Bytes of a chunk's size field."""
    order: Literal["little", "big"]
    step: int
    """Chunks start at multiples of this number of bytes."""
    whole: bool = False
    """The size includes the name and the size field."""

    def chunks(self, file: BinaryIO, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the name, the start of the content and the size of the content of every chunk from offset ``at`` on."""
        head = self.name + self.count
        while at + head <= size:
            file.seek(at)
            name = file.read(self.name)[:4]
            length = int.from_bytes(file.read(self.count), self.order) - (head if self.whole else 0)
            yield name, at + head, max(0, length)
            at += head + max(0, length)
            at += -at % self.step


RIFF = _Layout(12, 4, 4, "little", 2)
IFF = _Layout(12, 4, 4, "big", 2)
LAYOUTS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), RIFF),
    **dict.fromkeys((b"RIFX", b"FORM"), IFF),
    b"caff": _Layout(8, 4, 8, "big", 1),
    b"riff": _Layout(40, 16, 8, "little", 8, whole=True),
}


def _find_samples(file: BinaryIO, layout: _Layout, size: int) -> tuple[int, int] | None:
    """Return the offset of the samples and their announced size, both in bytes; None if no chunk holds samples."""
    wide: int | None = None
    for name, start, length in layout.chunks(file, layout.first, size):
        file.seek(start)
        if name == b"ds64":  # holds the sizes of an RF64 file and of its samples
            wide = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        elif name == b"data" and layout.count == 8 and not layout.whole:  # in CAF, a number of edits comes first
            return start + 4, max(0, length - 4)
        elif name == b"data":
            return start, wide if wide is not None and length == 0xFFFFFFFF else length
        elif name == b"SSND":
            offset = int.from_bytes(file.read(4), "big")
            return start + 8 + offset, max(0, length - 8 - offset)
    return None


def _is_no_audio(file: BinaryIO, at: int, size: int, layout: _Layout | None) -> bool:
    """Return whether the bytes from ``at`` to the file's end are chunks, a tag, zeros, or fewer than 8 bytes."""
    file.seek(at)
    block = file.read(16)
    if size - at < 8 or block.startswith(TAGS) or block[1:].startswith(TAGS):
        return True
    # Some programs leave out the byte after a chunk of odd size.
    if layout and any(_are_chunks(file, start, size, layout) for start in {at, at + -at % layout.step}):
        return True
    file.seek(at)
    while block := file.read(2**20):
        if block.strip(b"\0"):
            return False
    return True


def _are_chunks(file: BinaryIO, at: int, size: int, layout: _Layout) -> bool:
    for name, start, length in layout.chunks(file, at, size):
        if name in CHUNKS:
            return True
        if not re.fullmatch(rb"[A-Za-z0-9 _()]{4}", name) or start + length > size:
            return False
    return True


def flac_samples(path: Path) -> int | None:
    """Return a lower bound of the samples per channel in a FLAC file, from the number of the last frame's first sample.

    Return None if no frame header tells its number. Frame headers are checked with their checksums, so that samples are
    not taken for a header.
    """
    with open(path, "rb") as file:
        skip_id3(file)
        info = file.read(26)
        file.seek(max(0, path.stat().st_size - 2**18))
        tail = file.read()
    if info[:4] != b"fLaC":
        return None
    smallest, largest = struct.unpack_from(">HH", info, 8)
    for found in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", tail))):
        number = _frame_number(tail[found.start() : found.start() + 16])
        if number is not None:
            fixed = tail[found.start() + 1] == 0xF8
            return (number * largest if fixed else number) + 1 if smallest == largest or not fixed else None
    return None


def _frame_number(header: bytes) -> int | None:
    """Return the coded number of a FLAC frame or sample (RFC 9639, section 9.1.5); None if this is no frame header."""
    if len(header) < 16 or header[2] >> 4 == 0 or header[2] & 15 == 15 or header[3] & 1:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    length = max(1, ones)
    if ones == 1 or ones == 8:
        return None
    number = header[4] & (0x7F >> ones)
    for byte in header[5 : 4 + length]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    end = 4 + length + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    crc = 0
    for byte in header[:end]:
        crc = CRC8[crc ^ byte]
    return number if crc == header[end] else None
