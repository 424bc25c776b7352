"""Files as recorders, downloaders and broken programs leave them: each is read to its end, or said to be what it is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import open_audio, read_audio, write_audio
from metatasnet_fast.audio.decode import BLOCK, UNMARKED_OGG
from metatasnet_fast.audio.headers import recognise, sample_area
from metatasnet_fast.errors import AudioReadError, NotAudioError

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")

from .support import agree, decode_with_av, encode, multiplex, remux, tones  # noqa: E402

DATA = Path(__file__).parents[1] / "data"
RATE = 44100


def noise(channels: int, n: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.rand(channels, n, generator=torch.Generator().manual_seed(seed)) - 0.1


# Opus whose first granule position is not 0: what `yt-dlp -x` and `ffmpeg -c copy` make of WebM.


@pytest.fixture
def copied_opus(tmp_path: Path) -> Path:
    return remux(encode(tmp_path / "x.webm", noise(2, 96_000), 48000, "libopus"), tmp_path / "x.opus")


def test_opus_copied_from_webm_has_every_sample_in_its_place(copied_opus: Path) -> None:
    with open_audio(copied_opus) as stream:
        blocks = list(stream)
    assert stream.codec == "OGG OPUS" and stream.warnings == [] and blocks[0].shape[1] == BLOCK
    samples, independent = torch.cat(blocks, 1), decode_with_av(copied_opus)
    assert samples.shape == independent.shape
    for part in (slice(2000, BLOCK), slice(BLOCK, 2 * BLOCK), slice(2 * BLOCK, None)):
        assert agree(samples[:, part], independent[:, part]) < 0.02


def test_blocks_of_opus_are_what_the_whole_file_is_after_a_seek(copied_opus: Path) -> None:
    with sf.SoundFile(copied_opus) as file:
        file.seek(0)
        whole = file.read(dtype="float32", always_2d=True).T
    assert torch.equal(read_audio(copied_opus).samples, torch.from_numpy(whole.copy()))


def test_an_ogg_page_without_the_mark_of_the_end_is_no_lost_page(copied_opus: Path) -> None:
    data = copied_opus.read_bytes()
    copied_opus.write_bytes(data[: data.rfind(b"OggS")])
    audio = read_audio(copied_opus)
    assert audio.warnings == (UNMARKED_OGG,) and audio.samples.shape[1] > 40_000


def test_vorbis_that_begins_before_time_0_loses_nothing(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.ogg", noise(2, 96_000), 48000)
    audio = read_audio(remux(tmp_path / "x.ogg", tmp_path / "shifted.ogg", shift=-40_000))
    assert audio.samples.shape[1] >= 95_000


# Sizes in headers that are not those of the file.

CONTAINERS = {"WAV": "PCM_16", "RF64": "PCM_24", "AIFF": "PCM_16", "CAF": "FLOAT", "W64": "PCM_16", "AU": "PCM_16"}


def announce(path: Path, container: str, size: int) -> None:
    """Write another size of the samples into the header."""
    data = bytearray(path.read_bytes())
    if container == "AU":
        struct.pack_into(">I", data, 8, size)
    elif container == "AIFF":
        struct.pack_into(">I", data, data.index(b"SSND") + 4, size + 8)
    elif container == "CAF":
        struct.pack_into(">Q", data, data.index(b"data") + 4, size + 4)
    elif container == "W64":
        struct.pack_into("<Q", data, data.index(b"data\xf3\xac") + 16, size + 24)
    elif container == "RF64":
        struct.pack_into("<Q", data, data.index(b"ds64") + 16, size)
    else:
        struct.pack_into("<I", data, 4, 36 + size)
        struct.pack_into("<I", data, data.index(b"data") + 4, size)
    path.write_bytes(data)


@pytest.mark.parametrize("announced", [0, 8800])
@pytest.mark.parametrize("container", CONTAINERS)
def test_samples_behind_the_announced_end_are_read_with_a_warning(
    tmp_path: Path, container: str, announced: int
) -> None:
    path, x = tmp_path / "x", noise(2, 50_000)
    sf.write(path, x.T.numpy(), RATE, format=container, subtype=CONTAINERS[container])
    whole = read_audio(path)
    assert whole.samples.shape == x.shape and whole.warnings == ()
    announce(path, container, announced)
    with open_audio(path) as stream:
        assert stream.frames in (50_000, None)
        samples = torch.cat(list(stream), 1)
    assert torch.equal(samples, whole.samples)
    assert any(f"announces {announced} bytes" in warning for warning in stream.warnings)


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU"])
def test_a_size_that_was_left_open_is_no_damage(tmp_path: Path, container: str) -> None:
    path, x = tmp_path / "x", noise(2, 50_000)
    sf.write(path, x.T.numpy(), RATE, format=container, subtype="PCM_16")
    announce(path, container, 0xFFFFFFFF - (8 if container == "AIFF" else 0 if container == "AU" else 36))
    audio = read_audio(path)
    assert audio.samples.shape == x.shape and audio.warnings == ()


@pytest.mark.parametrize(
    "rest",
    [
        b"LIST\x04\x00\x00\x00INFO",
        b"LIST\xff\xff\x00\x00INFO cut off",
        b"abcd\x02\x00\x00\x00xxefgh\x00\x00\x00\x00",
        b"TAG".ljust(128, b" "),
        b"ID3\x03\x00\x00\x00\x00\x00\x10".ljust(26, b"\x01"),
        bytes(5000),
        b"\x00",
    ],
)
def test_what_follows_the_samples_and_is_no_audio_is_not_read(tmp_path: Path, rest: bytes) -> None:
    path, x = tmp_path / "x.wav", noise(1, 5_000)
    sf.write(path, x.T.numpy(), RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes() + rest)
    audio = read_audio(path)
    assert audio.samples.shape == x.shape and audio.warnings == ()


def test_adpcm_is_read_behind_the_announced_end(tmp_path: Path) -> None:
    path, x = tmp_path / "x.wav", noise(1, 40_000)
    sf.write(path, x.T.numpy(), RATE, subtype="IMA_ADPCM")
    whole = read_audio(path).samples
    announce(path, "WAV", 2048)
    audio = read_audio(path)
    assert audio.samples.shape[1] >= 39_000
    assert agree(audio.samples[:, :39_000], whole[:, :39_000]) < 0.05  # decoders round the steps differently
    assert any("announces 2048 bytes" in warning for warning in audio.warnings)


@pytest.mark.parametrize("announced", [0xFFFFFFFF, (2**32 + 400_000_000) % 2**32])
def test_every_sample_of_a_wav_file_beyond_4_gib_is_found(tmp_path: Path, announced: int) -> None:
    path, n = tmp_path / "x.wav", 2**32 + 400_000_000
    sf.write(path, np.zeros((1, 2)), RATE, subtype="PCM_16")
    head = path.read_bytes()[:44]
    marker = struct.pack("<hh", 16384, -16384)
    with open(path, "wb") as file:
        file.write(head[:40] + struct.pack("<I", announced) + marker * 4)
        for place in (400_000_000, n - 4):
            file.seek(44 + place)
            file.write(marker)
    assert sample_area(path) is not None
    with open_audio(path) as stream:
        assert stream.frames == n // 4
        assert next(iter(stream))[:, :4].tolist() == [[0.5] * 4, [-0.5] * 4]


def test_a_flac_file_that_announces_too_few_samples_is_read_to_its_end(tmp_path: Path) -> None:
    path, x = tmp_path / "x.flac", noise(2, 192_000)
    write_audio(path, x, 48000)
    whole = read_audio(path)
    assert whole.warnings == ()
    data = bytearray(path.read_bytes())
    total = 48_000
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    audio = read_audio(path)
    assert torch.equal(audio.samples, whole.samples)
    assert audio.warnings == ("the file announces 48000 samples, 192000 are there and were read",)


def test_an_mp3_header_that_the_file_cannot_hold_is_not_believed(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp3", noise(1, 44_100), RATE, "libmp3lame")
    data = bytearray(path.read_bytes())
    at = max(data.find(b"Xing"), data.find(b"Info"))
    struct.pack_into(">I", data, at + 8, 2**31 - 1)
    path.write_bytes(data)
    with open_audio(path) as stream:
        assert stream.frames is None
        samples = torch.cat(list(stream), 1)
    assert 40_000 < samples.shape[1] < 50_000
    assert any("cannot hold" in warning for warning in stream.warnings)


# Other integers.


def test_integers_of_64_bits_are_read(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (5000, 2), dtype=np.int64)
    audio = read_audio(wav64(tmp_path / "x.wav", x))
    assert np.abs(audio.samples.numpy() - x.T / 2.0**63).max() < 1e-6 and audio.warnings == ()


def test_integers_of_64_bits_with_short_values_are_said_to_be_nearly_silent(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-30_000, 30_000, (5000, 2), dtype=np.int64)
    audio = read_audio(wav64(tmp_path / "x.wav", x))
    assert audio.samples.abs().max() < 1e-13 and "nearly silent" in audio.warnings[0]


def wav64(path: Path, x: np.ndarray) -> Path:
    """As scipy writes an int64 array."""
    n, channels = x.shape
    form = struct.pack("<HHIIHH", 1, channels, RATE, RATE * 8 * channels, 8 * channels, 64)
    data = x.astype("<i8").tobytes()
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", len(data)) + data
    )  # fmt: skip
    return path


# Streams that change, and files with several.


@pytest.mark.parametrize(
    ("codec", "name", "rates", "channels"),
    [
        ("libmp3lame", "x.mp3", (44100, 44100), (1, 2)),
        ("libmp3lame", "x.mp3", (44100, 44100), (2, 1)),
        ("libmp3lame", "x.mp3", (48000, 44100), (2, 2)),
        ("ac3", "x.ac3", (48000, 48000), (2, 6)),
        ("ac3", "x.ts", (48000, 48000), (2, 6)),
        ("flac", "x.flac", (48000, 32000), (2, 2)),
    ],
)
def test_a_stream_that_changes_is_converted_to_its_first_format(
    tmp_path: Path, codec: str, name: str, rates: tuple[int, int], channels: tuple[int, int]
) -> None:
    parts = [
        encode(tmp_path / f"{i}-{name}", tones(c, 2 * r, r), r, codec)
        for i, (r, c) in enumerate(zip(rates, channels, strict=True))
    ]
    data = [part.read_bytes() for part in parts]
    if codec == "flac":  # only its frames
        data[1] = data[1][data[1].index(b"\xff\xf8") :]
    path = tmp_path / name
    path.write_bytes(b"".join(data))
    audio = read_audio(path, partial=codec == "flac")
    assert (audio.sample_rate, len(audio.samples)) == (rates[0], channels[0])
    assert abs(audio.samples.shape[1] / rates[0] - 4) < 0.15
    assert any("was converted to" in warning for warning in audio.warnings)
    middle = audio.samples[:, int(2.5 * rates[0]) : int(3.5 * rates[0])]
    assert middle.abs().max() > 0.05  # the tones of the second part


def test_the_track_that_the_container_calls_its_default_is_read(tmp_path: Path) -> None:
    sounds = [tones(1, 48_000, 48000), 0.1 * tones(1, 48_000, 48000)]
    path = multiplex(tmp_path / "x.mkv", sounds, 48000, "aac", default=1)
    with open_audio(path) as stream:
        loudness = float(torch.cat(list(stream), 1).abs().max())
        assert (stream.track, stream.tracks) == (2, 2)
    assert loudness < 0.1 and stream.warnings == ["there are 2 audio tracks; number 2 was read"]
    first = read_audio(path, track=1)
    assert first.samples.abs().max() > 0.3 and first.warnings == ()
    with pytest.raises(NotAudioError, match="has no audio track 3, of 2; name another"):
        read_audio(path, track=3)


def test_a_file_with_one_track_has_no_second(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", noise(1, 100), RATE)
    assert read_audio(tmp_path / "x.wav", track=1).samples.shape == (1, 100)
    with pytest.raises(NotAudioError, match="no audio track 2"):
        read_audio(tmp_path / "x.wav", track=2)


# Damage and strangers.


def test_a_header_that_leads_to_a_negative_place_is_one_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = encode(tmp_path / "x.wma", noise(2, 44_100), RATE, "wmav2")
    data = bytearray(path.read_bytes())
    size = struct.unpack_from("<Q", data, 16)[0]
    at = last = 30
    while at < size:
        last, at = at, at + struct.unpack_from("<Q", data, at + 16)[0]
    struct.pack_into("<Q", data, last + 16, 2**63 - 1)
    path.write_bytes(data)
    with pytest.raises(AudioReadError, match="damaged or incomplete"):
        read_audio(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tone.ape", "tone.mpc"])
def test_formats_behind_an_id3_tag_decode(tmp_path: Path, name: str) -> None:
    tag = b"ID3\x03\x00\x00\x00\x00\x08\x00".ljust(10 + 8 * 128, b"\0")
    (tmp_path / name).write_bytes(tag + (DATA / name).read_bytes())
    audio = read_audio(DATA / name)
    assert torch.equal(read_audio(tmp_path / name).samples, audio.samples)
    t = torch.arange(22_050) / RATE
    assert (
        min(agree(audio.samples[:1, d : d + 15_000], 0.3 * torch.sin(880 * torch.pi * t)[None]) for d in range(600))
        < 0.05
    )


@pytest.mark.parametrize("name", ["x.mp3", "x.wv"])
def test_a_tag_at_the_end_is_no_damage(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, noise(2, 44_100), RATE, {"x.mp3": "libmp3lame", "x.wv": "wavpack"}[name])
    whole = read_audio(path)
    text = b"A long text that is no sound. " * 20
    item = struct.pack("<II", len(text), 0) + b"Comment\0" + text
    footer = b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, 0) + bytes(8)
    path.write_bytes(path.read_bytes() + item + footer + b"TAG".ljust(128, b" "))
    tagged = read_audio(path)
    assert torch.equal(tagged.samples, whole.samples) and tagged.warnings == whole.warnings == ()


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"wvpk", "WavPack"),
        (b"0&\xb2u\x8ef\xcf\x11", "Windows Media"),
        (b"MAC ", "Monkey's Audio"),
        (b"ADIF", "AAC file with an ADIF header"),
        (b"\x56\xe1\x00", "AAC"),
        (b"IMPM", "tracker module"),
        (b"Extended Module: x", "tracker module"),
        (bytes(44) + b"SCRM", "tracker module"),
        (bytes(1080) + b"M.K.", "tracker module"),
        (b"MThd\x00\x00\x00\x06", "MIDI file"),
        (b"\xff\xfb\x90\x00", "MPEG audio"),
        (b"\xff\xff\x90\x00", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"", None),
    ],
)
def test_formats_are_told_by_how_they_begin(start: bytes, name: str | None) -> None:
    assert recognise(start) == name


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"IMPM", "is a tracker module: it holds notes"),
        (b"MThd\x00\x00\x00\x06", "is a MIDI file: it holds notes"),
        (b"ADIF", "is an AAC file with an ADIF header, which nothing here decodes"),
        (b"OFR ", "is an OptimFROG file, which nothing here decodes"),
    ],
)
def test_what_nothing_here_can_read_is_called_by_its_name(tmp_path: Path, start: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(start.ljust(2000, b"\x07"))
    with pytest.raises(AudioReadError, match=says):
        read_audio(tmp_path / "x")


def test_samples_that_are_announced_and_lost_are_no_empty_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.m4a", noise(2, 400_000), RATE, "aac", options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    with pytest.raises(AudioReadError, match="announced, none could be decoded.*fetch or export") as refused:
        read_audio(path)
    assert type(refused.value) is AudioReadError


@pytest.mark.parametrize("name", ["https://example.org/a.mp3", "s3://bucket/a.wav"])
def test_an_address_is_called_one(name: str) -> None:
    with pytest.raises(AudioReadError, match=f"{name} is an address"):
        read_audio(name)


# The samples' depth.

WRITE: dict[str, Callable[[Path], object]] = {
    "int16": lambda path: sf.write(path, np.zeros(100), RATE, format="WAV", subtype="PCM_16"),
    "int24": lambda path: sf.write(path, np.zeros(100), RATE, format="FLAC", subtype="PCM_24"),
    "int32": lambda path: sf.write(path, np.zeros(100), RATE, format="AIFF", subtype="PCM_32"),
    "float32": lambda path: sf.write(path, np.zeros(100), RATE, format="WAV", subtype="DOUBLE"),
    "None": lambda path: sf.write(path, np.zeros(5000), RATE, format="OGG", subtype="VORBIS"),
}


@pytest.mark.parametrize("depth", WRITE)
def test_the_depth_of_the_samples_is_known(tmp_path: Path, depth: str) -> None:
    WRITE[depth](tmp_path / "x")
    with open_audio(tmp_path / "x") as stream:
        assert str(stream.depth) == depth


@pytest.mark.parametrize(
    ("codec", "depth"),
    [("pcm_s16le", "int16"), ("pcm_s32le", "int32"), ("pcm_f32le", "float32"), ("alac", "int24"), ("aac", None)],
)
def test_ffmpeg_tells_the_depth_too(tmp_path: Path, codec: str, depth: str | None) -> None:
    path = encode(tmp_path / "x.mov", noise(1, 10_000), 48000, codec, sample_format="s32p" if codec == "alac" else None)
    with open_audio(path) as stream:
        assert stream.depth == depth
