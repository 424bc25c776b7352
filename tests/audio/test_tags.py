"""Title, artist, cover and the rest go from a recording into its stems, and change no sample."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch

from metatasnet_fast.audio import AudioWriter, Tags, read_audio, read_tags, write_audio
from metatasnet_fast.errors import AudioFormatError

pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("mutagen", reason="mutagen is not installed")
pytest.importorskip("av", reason="av is not installed")

TEXT = {"title": "Søng", "artist": "Ärtist", "album": "A", "album_artist": "B", "track": "3/12", "date": "1999"}


def png() -> bytes:
    """A white pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\xff\xff\xff")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def write(path: Path, tags: Tags | None) -> torch.Tensor:
    x = torch.rand(2, 30_000, generator=torch.Generator().manual_seed(0)) - 0.5
    with AudioWriter(path, 44100, 2, tags=tags) as writer:
        writer.write(x)
    return read_audio(path).samples


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_what_was_written_is_read_and_no_sample_changes(tmp_path: Path, format: str) -> None:
    tags = Tags({**TEXT, "comment": "one\ntwo"}, png())
    tagged, plain = write(tmp_path / f"a.{format}", tags), write(tmp_path / f"b.{format}", None)
    assert torch.equal(tagged, plain)
    found = read_tags(tmp_path / f"a.{format}")
    assert (dict(found.text), found.cover, found.image) == (dict(tags.text), tags.cover, "image/png")
    assert read_audio(tmp_path / f"a.{format}").warnings == ()
    assert read_tags(tmp_path / f"b.{format}") == Tags()


@pytest.mark.parametrize("format", ["wav", "flac", "mp3"])
def test_equal_tags_make_equal_files(tmp_path: Path, format: str) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.{format}", Tags(TEXT, png()))
    assert (tmp_path / f"a.{format}").read_bytes() == (tmp_path / f"b.{format}").read_bytes()


def test_a_cover_of_no_known_kind_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "x.flac", Tags(TEXT, b"no picture"))
    assert read_tags(tmp_path / "x.flac") == Tags(TEXT)


def test_what_has_no_tags_or_is_no_audio_gives_none(tmp_path: Path) -> None:
    (tmp_path / "x.mp3").write_bytes(b"not music" * 100)
    write_audio(tmp_path / "y.wav", torch.zeros(1, 10), 8000)
    assert read_tags(tmp_path / "x.mp3") == read_tags(tmp_path / "y.wav") == Tags()


def test_a_cover_takes_room_in_a_wav_file(tmp_path: Path) -> None:
    most = (2**32 - 2**16) // 4
    AudioWriter(tmp_path / "x.wav", 44100, 2, frames=most)
    with pytest.raises(AudioFormatError, match="4 GiB"):
        AudioWriter(tmp_path / "x.wav", 44100, 2, frames=most, tags=Tags({}, png()))
