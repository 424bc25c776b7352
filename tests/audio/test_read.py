"""What decodes is returned, and what does not is reported."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import open_audio, read_audio, write_audio
from metatasnet_fast.audio.decode import BLOCK
from metatasnet_fast.errors import AudioReadError

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")

from .support import agree, av, cut, encode, tones  # noqa: E402


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("sample_rate", [8000, 44100, 192000])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_length_rate_and_channels_are_exact(tmp_path: Path, format: str, sample_rate: int, channels: int) -> None:
    x = tones(channels, 20011, sample_rate)
    write_audio(tmp_path / f"x.{format}", x, sample_rate)
    audio = read_audio(tmp_path / f"x.{format}")
    assert audio.samples.shape == x.shape
    assert audio.samples.dtype == torch.float32
    assert audio.sample_rate == sample_rate
    assert audio.warnings == ()
    assert agree(audio.samples, x) < (0.15 if format == "ogg" else 1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "video"),
    [
        ("x.m4a", "aac", False),
        ("x.m4a", "alac", False),
        ("x.mp4", "aac", True),
        ("x.mkv", "vorbis", True),
        ("x.webm", "libopus", False),
        ("x.wma", "wmav2", False),
        ("x.mp3", "libmp3lame", False),
        ("x.aac", "aac", False),
        ("x.mka", "pcm_u8", False),
        ("x.mov", "pcm_f64le", False),
        ("x.ac3", "ac3", False),
        ("x.avi", "mp2", True),
    ],
)
def test_ffmpeg_reads_the_rest(tmp_path: Path, name: str, codec: str, video: bool) -> None:
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this build of FFmpeg cannot encode {codec}")
    x = tones(2, 48000, 48000)
    options = {"strict": "experimental"}
    with open_audio(encode(tmp_path / name, x, 48000, codec, video, options)) as stream:
        samples = torch.cat(list(stream), 1)
    assert (stream.sample_rate, stream.channels, stream.warnings) == (48000, 2, [])
    assert abs(samples.shape[1] - 48000) < 4800
    assert stream.frames is None or abs(stream.frames - samples.shape[1]) < 4800
    # A delay that the container does not declare is not ours to guess; it is short, and the tones are low.
    delays = range(0, 3000, 4)
    assert min(agree(samples[:, d:45000], x[:, : 45000 - d]) for d in delays) < 0.1


@pytest.mark.parametrize(("name", "codec"), [("x.m4a", "aac"), ("x.mp3", "libmp3lame")])
def test_encoder_delay_is_removed(tmp_path: Path, name: str, codec: str) -> None:
    click = torch.zeros(1, 44100)
    click[0, 20000] = 0.9
    samples = read_audio(encode(tmp_path / name, click, 44100, codec)).samples
    assert int(samples.abs().argmax()) == 20000


@pytest.mark.parametrize(("name", "codec"), [("x.mka", "libopus"), ("x.mp4", "aac"), ("x.mov", "pcm_s16le")])
@pytest.mark.parametrize("channels", [6, 8])
def test_every_channel_stays_in_its_place(tmp_path: Path, name: str, codec: str, channels: int) -> None:
    try:
        av.codec.Codec(codec, "w")
        path = encode(tmp_path / name, tones(channels, 24000, 48000), 48000, codec)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this build of FFmpeg cannot encode {codec} with {channels} channels: {error}")
    samples = read_audio(path).samples
    assert samples.shape[0] == channels
    spectrum = torch.fft.rfft(samples[:, 4000:16000] * torch.hann_window(12000), n=48000).abs()
    assert spectrum[:, :200].argmax(1).tolist() == [40 + 10 * c for c in range(channels)]


@pytest.mark.parametrize("format", ["flac", "ogg", "wav"])
def test_six_channels_are_the_same_in_every_format(tmp_path: Path, format: str) -> None:
    x = tones(6, 20000, 44100)
    write_audio(tmp_path / f"x.{format}", x, 44100)
    decoded = [f.to_ndarray() for f in av.open(str(tmp_path / f"x.{format}")).decode(audio=0)]
    ffmpeg = np.concatenate([d.reshape(-1, 6).T if len(d) == 1 else d for d in decoded], 1)
    scale = {"f": 1.0, "i": 2.0 ** (8 * ffmpeg.dtype.itemsize - 1)}[ffmpeg.dtype.kind]
    ours = read_audio(tmp_path / f"x.{format}").samples
    assert agree(torch.from_numpy(ffmpeg / scale).float(), ours) < 1e-5


def test_blocks_are_bounded_and_make_the_whole(tmp_path: Path) -> None:
    x = tones(2, 300_000, 44100)
    for name in ("x.wav", "x.mp3"):
        write_audio(tmp_path / name, x, 44100)
        with open_audio(tmp_path / name) as stream:
            assert stream.frames == 300_000
            blocks = list(stream)
        assert all(0 < block.shape[1] < 2 * BLOCK for block in blocks)
        assert torch.equal(torch.cat(blocks, 1), read_audio(tmp_path / name).samples)
        assert stream.frames_read == 300_000


def test_a_stream_may_be_left_early(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.mp3", tones(2, 200_000, 44100), 44100)
    with open_audio(tmp_path / "x.mp3") as stream:
        next(stream)
    assert list(stream) == []


def test_variable_rate_mp3_without_a_length_header_is_read_to_its_end(tmp_path: Path) -> None:
    quiet_then_noise = torch.cat([torch.zeros(1, 441_000), torch.rand(1, 441_000) - 0.5], 1)
    encoder = {"write_xing": "0"}
    path = tmp_path / "x.mp3"
    with av.open(str(path), "w", options=encoder) as container:
        stream = container.add_stream("libmp3lame", rate=44100, layout="mono")
        stream.codec_context.options = {"compression_level": "7", "global_quality": str(4 * 118)}
        stream.codec_context.qscale = True
        frame = av.AudioFrame.from_ndarray(quiet_then_noise.numpy(), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for part in av.AudioResampler(format="fltp", layout="mono", rate=44100, frame_size=1152).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    with open_audio(path) as opened:
        assert opened.frames is None
        n = sum(block.shape[1] for block in opened)
    assert abs(n - 882_000) < 3 * 1152
    assert opened.warnings == []


def test_chained_ogg_is_read_to_its_end(tmp_path: Path) -> None:
    for i, part in enumerate(tones(2, 200_000, 44100)):
        write_audio(tmp_path / f"{i}.ogg", part, 44100)
    chain = tmp_path / "chain.ogg"
    chain.write_bytes((tmp_path / "0.ogg").read_bytes() + (tmp_path / "1.ogg").read_bytes())
    assert abs(read_audio(chain).samples.shape[1] - 400_000) < 600


@pytest.mark.parametrize("subtype", ["int16", "int24", "float32"])
def test_a_cut_wav_gives_what_is_there_and_says_so(tmp_path: Path, subtype: str) -> None:
    x = tones(2, 30_000, 44100)
    write_audio(tmp_path / "x.wav", x, 44100, subtype=subtype)
    audio = read_audio(cut(tmp_path / "x.wav"), partial=True)
    assert 19_900 < audio.samples.shape[1] < 20_000
    assert agree(audio.samples, x) < 1e-4
    (warning,) = audio.warnings
    assert warning == f"the file announces 30000 samples, {audio.samples.shape[1]} could be decoded"


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.mp3"])
def test_a_cut_compressed_file_gives_what_is_there_and_says_so(tmp_path: Path, name: str) -> None:
    x = torch.cat([tones(2, 400_000, 44100)]) + 0.1 * torch.rand(2, 400_000)
    write_audio(tmp_path / name, x, 44100)
    whole = read_audio(tmp_path / name).samples
    audio = read_audio(cut(tmp_path / name), partial=True)
    n = audio.samples.shape[1]
    assert 200_000 < n < 280_000
    assert agree(audio.samples[:, : n - 5000], whole) < 1e-5
    assert audio.warnings
    assert any("early" in w or "announces" in w for w in audio.warnings)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3"])
def test_a_file_that_lacks_more_than_a_twentieth_is_refused_at_its_end(tmp_path: Path, name: str) -> None:
    write_audio(tmp_path / name, 0.1 * torch.rand(2, 400_000), 44100)
    with open_audio(cut(tmp_path / name, 0.97)) as stream:
        assert sum(block.shape[1] for block in stream) > 0.95 * 400_000
        assert stream.warnings
    with open_audio(cut(tmp_path / name, 0.9)) as stream:
        read = 0
        with pytest.raises(AudioReadError, match=r"Only (89|90)\.\d% of .*announces 400000 samples.*fetch or export"):
            for block in stream:
                read += block.shape[1]
    assert 0.85 * 400_000 < read < 0.95 * 400_000


def test_a_cut_m4a_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    x = tones(2, 400_000, 44100)
    path = encode(tmp_path / "x.m4a", x, 44100, "aac", options={"movflags": "faststart"})
    audio = read_audio(cut(path), partial=True)
    assert 200_000 < audio.samples.shape[1] < 300_000
    assert any("announces" in w for w in audio.warnings)


def test_damage_in_the_middle_of_a_flac_loses_only_that_place(tmp_path: Path) -> None:
    x = 0.2 * torch.rand(2, 400_000)
    write_audio(tmp_path / "x.flac", x, 44100)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "x.flac").write_bytes(data)
    audio = read_audio(tmp_path / "x.flac", partial=True)
    assert 0 < 400_000 - audio.samples.shape[1] <= 5 * 4096  # frames: FFmpeg needs a few to find its way again
    assert agree(audio.samples[:, :175_000], x[:, :175_000]) < 1e-3
    assert agree(audio.samples[:, -100_000:], x[:, -100_000:]) < 1e-3
    assert any("FFmpeg went on" in w for w in audio.warnings)


def test_damage_at_the_start_of_a_flac_is_said(tmp_path: Path) -> None:
    """libsndfile gives up in its first block, and FFmpeg, which leaves one frame out, says nothing."""
    write_audio(tmp_path / "x.flac", 0.2 * torch.rand(2, 400_000), 44100)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[20_000:20_300] = bytes(300)
    (tmp_path / "x.flac").write_bytes(data)
    audio = read_audio(tmp_path / "x.flac")
    assert any("first block" in warning for warning in audio.warnings)
    lost = 400_000 - audio.samples.shape[1]
    assert lost == 0 or any(f"{400_000 - lost} could be decoded" in warning for warning in audio.warnings)


def test_damaged_packets_are_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.m4a", 0.2 * torch.rand(2, 400_000), 44100, "aac", options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    assert any("damaged packets were left out: " in w for w in read_audio(path, partial=True).warnings)


def test_nan_and_infinity_become_silence_and_are_counted(tmp_path: Path) -> None:
    x = np.full((2000, 2), 0.5, dtype=np.float32)
    x[100, 0], x[1500, 1], x[1501, 1] = np.nan, np.inf, -np.inf
    sf.write(tmp_path / "x.wav", x, 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "x.wav")
    expected = torch.full((2, 2000), 0.5)
    expected[0, 100] = expected[1, 1500] = expected[1, 1501] = 0
    assert torch.equal(audio.samples, expected)
    assert audio.warnings == ("3 samples were NaN or infinite and were replaced by 0",)


def test_full_scale_of_integers_is_one(tmp_path: Path) -> None:
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32"):
        sf.write(tmp_path / "x.wav", np.array([-1.0, 0.0, 0.5]), 8000, subtype=subtype)
        assert read_audio(tmp_path / "x.wav").samples.tolist() == [[-1.0, 0.0, 0.5]]


def test_names_in_any_encoding(tmp_path: Path) -> None:
    for format in ("wav", "mp3"):
        path = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x8e\xb5 %s." + format.encode())
        write_audio(path, tones(1, 5000, 44100), 44100)
        assert read_audio(path).samples.shape == (1, 5000)
