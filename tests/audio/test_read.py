"""What decodes is returned, what does not is reported, and what is no audio is refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import open_audio, read_audio, write_audio
from metatasnet_fast.audio.decode import BLOCK
from metatasnet_fast.errors import AudioReadError, EmptyAudioError, MissingDependencyError, NotAudioError

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")
av = pytest.importorskip("av", reason="av is not installed")

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tones(channels: int, n: int, sample_rate: int) -> torch.Tensor:
    """Another tone in every channel (all below 120 Hz, so that a low-frequency channel keeps its own)."""
    t = torch.arange(n) / sample_rate
    return torch.stack([0.4 * torch.sin(2 * torch.pi * (40 + 10 * c) * t) for c in range(channels)])


def encode(
    path: Path, x: torch.Tensor, sample_rate: int, codec: str, video: bool = False, options: object = None
) -> Path:
    """Write `x` (channels, n) with FFmpeg, after an empty picture track if `video`."""
    with av.open(str(path), "w", options=options or {}) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=sample_rate, layout=LAYOUTS[len(x)])
        stream.bit_rate = 96000 * len(x)
        if video:
            for _ in range(5):
                container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(picture.encode(None))
        format = stream.codec_context.format.name
        packed = np.ascontiguousarray(x.T.numpy().reshape(1, -1), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(x)])
        frame.sample_rate, frame.pts = sample_rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=format, layout=LAYOUTS[len(x)], rate=sample_rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float = 2 / 3) -> Path:
    data = path.read_bytes()
    shorter = path.with_name(f"cut-{path.name}")
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


def agree(a: torch.Tensor, b: torch.Tensor) -> float:
    n = min(a.shape[1], b.shape[1])
    return float((a[:, :n] - b[:, :n]).norm() / b[:, :n].norm())


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
        stream.codec_context.options = {"compression_level": "7"}
        stream.codec_context.qscale = True
        stream.codec_context.global_quality = 4 * 118
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
    audio = read_audio(cut(tmp_path / "x.wav"))
    assert 19_900 < audio.samples.shape[1] < 20_000
    assert agree(audio.samples, x) < 1e-4
    assert len(audio.warnings) == 1
    assert "ends early" in audio.warnings[0]


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.mp3"])
def test_a_cut_compressed_file_gives_what_is_there_and_says_so(tmp_path: Path, name: str) -> None:
    x = torch.cat([tones(2, 400_000, 44100)]) + 0.1 * torch.rand(2, 400_000)
    write_audio(tmp_path / name, x, 44100)
    whole = read_audio(tmp_path / name).samples
    audio = read_audio(cut(tmp_path / name))
    n = audio.samples.shape[1]
    assert 200_000 < n < 280_000
    assert agree(audio.samples[:, : n - 5000], whole) < 1e-5
    assert audio.warnings
    assert any("early" in w or "announces" in w for w in audio.warnings)


def test_a_cut_m4a_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    x = tones(2, 400_000, 44100)
    path = encode(tmp_path / "x.m4a", x, 44100, "aac", options={"movflags": "faststart"})
    audio = read_audio(cut(path))
    assert 200_000 < audio.samples.shape[1] < 300_000
    assert any("announces" in w for w in audio.warnings)


def test_damage_in_the_middle_of_a_flac_loses_only_that_place(tmp_path: Path) -> None:
    x = 0.2 * torch.rand(2, 400_000)
    write_audio(tmp_path / "x.flac", x, 44100)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "x.flac").write_bytes(data)
    audio = read_audio(tmp_path / "x.flac")
    assert 380_000 < audio.samples.shape[1] < 400_000
    assert agree(audio.samples[:, :190_000], x[:, :190_000]) < 1e-3
    assert agree(audio.samples[:, -100_000:], x[:, -100_000:]) < 1e-3
    assert any("FFmpeg went on" in w for w in audio.warnings)


def test_damaged_packets_are_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.m4a", 0.2 * torch.rand(2, 400_000), 44100, "aac", options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    assert any("damaged packets were left out: " in w for w in read_audio(path).warnings)


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


@pytest.mark.parametrize("content", [b"not music\n" * 500, bytes(5000), b"\xff\xfb" * 100, os.urandom(3000)])
@pytest.mark.parametrize("name", ["x.txt", "x.wav", "x.mp3", "x.ogg", "x.raw", "x"])
def test_other_content_is_refused_and_no_decoder_writes_about_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioReadError, match="name an audio or video file|fetch or export"):
        read_audio(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_picture_and_a_silent_film_are_not_audio(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "x.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame(32, 32, "rgb24")))
        container.mux(stream.encode(None))
    for name in ("x.mp4", "x.png"):
        with pytest.raises(NotAudioError, match="no audio"):
            read_audio(tmp_path / name)


def test_a_playlist_opens_nothing_else(tmp_path: Path) -> None:
    inner = encode(tmp_path / "x.aac", tones(2, 48000, 48000), 48000, "aac")
    (tmp_path / "x.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nfile://{inner}\n#EXT-X-ENDLIST\n")
    with pytest.raises(AudioReadError):
        read_audio(tmp_path / "x.m3u8")


def test_both_decoders_give_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFFnothing that anyone can read")
    with pytest.raises(AudioReadError, match="libsndfile: .+; FFmpeg: .+"):
        read_audio(tmp_path / "x.wav")


def test_missing_files_and_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(AudioReadError, match="no file"):
        read_audio(tmp_path / "x.wav")
    with pytest.raises(AudioReadError, match=r"is a directory; name one audio file\.$"):
        read_audio(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioReadError, match=r"not a regular file; store the audio in a file first\.$"):
        read_audio(tmp_path / "pipe.wav")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "x.wav", torch.zeros(1, 10), 8000)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("metatasnet_fast.audio.read.open", forbidden, raising=False)
    with pytest.raises(AudioReadError, match="permissions"):
        read_audio(tmp_path / "x.wav")


def test_no_samples_are_an_error_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").touch()
    sf.write(tmp_path / "x.wav", np.zeros((0, 2)), 44100)
    sf.write(tmp_path / "x.ogg", np.zeros((0, 2)), 44100)
    for name in ("nothing.wav", "x.wav", "x.ogg"):
        with pytest.raises(EmptyAudioError):
            open_audio(tmp_path / name)


def test_names_in_any_encoding(tmp_path: Path) -> None:
    for format in ("wav", "mp3"):
        path = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x8e\xb5 %s." + format.encode())
        write_audio(path, tones(1, 5000, 44100), 44100)
        assert read_audio(path).samples.shape == (1, 5000)


@pytest.mark.parametrize(("module", "name"), [("soundfile", "x.wav"), ("av", "x.mp3")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    write_audio(tmp_path / name, tones(1, 5000, 44100), 44100)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{module}.*metatasnet-fast\[audio\]"):
        read_audio(tmp_path / name)
