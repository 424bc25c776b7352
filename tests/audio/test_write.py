"""Files hold what was written, and are complete or absent."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.audio import AudioWriter, read_audio, write_audio
from metatasnet_fast.errors import AudioFormatError, AudioWriteError, ShapeError

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")


def noise(channels: int, n: int, peak: float = 0.9) -> torch.Tensor:
    x = torch.rand(channels, n, generator=torch.Generator().manual_seed(n)) * 2 - 1
    return peak * x


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("sample_rate", [8000, 44100, 44101, 192000])
@pytest.mark.parametrize(
    ("format", "subtype", "step"),
    [("wav", "int16", 2**-15), ("wav", "int24", 2**-23), ("flac", "int16", 2**-15), ("flac", "int24", 2**-23)],
)
def test_integer_formats_are_exact_to_half_a_step(
    tmp_path: Path, format: str, subtype: str, step: float, channels: int, sample_rate: int
) -> None:
    x = noise(channels, 5000)
    path = tmp_path / f"x.{format}"
    written = write_audio(path, x, sample_rate, subtype=subtype)
    assert (written.path, written.frames, written.clipped_samples) == (path, 5000, 0)
    samples, rate = sf.read(path, always_2d=True, dtype="float64")
    assert (samples.T.shape, rate) == (tuple(x.shape), sample_rate)
    assert np.abs(samples.T - x.double().numpy()).max() <= step / 2
    info = sf.info(path)
    assert (info.format.lower(), info.subtype) == (format, {"int16": "PCM_16", "int24": "PCM_24"}[subtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_wav_is_exact_and_unclipped(tmp_path: Path, dtype: torch.dtype) -> None:
    x = noise(2, 3000, peak=7.0).to(dtype)
    assert write_audio(tmp_path / "x.wav", x, 44100, subtype="float32").clipped_samples == 0
    assert torch.equal(read_audio(tmp_path / "x.wav").samples, x.float())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=50), st.sampled_from(["int16", "int24"]))
def test_clipping_is_counted_and_nothing_is_rescaled(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], subtype: str
) -> None:
    path = tmp_path_factory.mktemp("clip") / "x.wav"
    x = torch.tensor([values])
    scale = 2.0 ** (int(subtype[3:]) - 1)
    steps = [round(v * scale) for v in x[0].tolist()]
    expected = [min(max(s, -scale), scale - 1) / scale for s in steps]
    written = write_audio(path, x, 44100, subtype=subtype)
    assert written.clipped_samples == sum(not -scale <= s <= scale - 1 for s in steps)
    assert sf.read(path, dtype="float64")[0].tolist() == expected


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_blocks_make_the_file_of_the_whole(tmp_path: Path, format: str) -> None:
    x = noise(2, 100_000, peak=0.3)
    with AudioWriter(tmp_path / f"blocks.{format}", 44100, channels=2) as writer:
        for block in x.split([1, 0, 40_000, 7, 59_992], 1):
            writer.write(block)
    write_audio(tmp_path / f"whole.{format}", x, 44100)
    assert writer.frames == 100_000
    assert torch.equal(
        read_audio(tmp_path / f"blocks.{format}").samples, read_audio(tmp_path / f"whole.{format}").samples
    )


@pytest.mark.parametrize(
    ("format", "channels"), [("ogg", 1), ("ogg", 2), ("ogg", 5), ("ogg", 8), ("mp3", 1), ("mp3", 2)]
)
def test_lossy_formats_keep_length_and_sound(tmp_path: Path, format: str, channels: int) -> None:
    t = torch.arange(44100) / 44100
    x = torch.stack([0.5 * torch.sin(2 * torch.pi * 300 * (c + 1) * t) for c in range(channels)])
    write_audio(tmp_path / f"x.{format}", x, 44100)
    audio = read_audio(tmp_path / f"x.{format}")
    assert audio.samples.shape == x.shape
    assert audio.warnings == ()
    assert float((audio.samples - x).norm() / x.norm()) < 0.05


def test_a_signal_of_one_dimension_is_mono(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", torch.zeros(10), 8000)
    assert read_audio(tmp_path / "x.wav").samples.shape == (1, 10)


def test_the_format_may_differ_from_the_name(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.part1", torch.zeros(1, 10), 8000, format="flac")
    assert sf.info(tmp_path / "x.part1").format == "FLAC"


@pytest.mark.parametrize(
    ("format", "subtype"), [("wav", "float32"), ("wav", "int24"), ("flac", "int16"), ("mp3", None)]
)
def test_equal_samples_are_equal_bytes_at_any_time(tmp_path: Path, format: str, subtype: str | None) -> None:
    x = noise(2, 5000)
    for name in ("a", "b"):
        write_audio(tmp_path / name, x, 44100, format, subtype)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    # libsndfile's PEAK chunk would hold the second of writing.
    assert b"PEAK" not in (tmp_path / "a").read_bytes()[:200]


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_an_exception_leaves_nothing_new_and_keeps_the_old(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"x.{format}"
    path.write_bytes(b"what was there before")
    with pytest.raises(KeyError), AudioWriter(path, 44100, channels=2) as writer:
        writer.write(noise(2, 50_000))
        raise KeyError
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"what was there before"


def test_the_name_appears_only_with_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with AudioWriter(path, 44100, channels=1) as writer:
        writer.write(noise(1, 50_000))
        assert not path.exists()
    assert os.listdir(tmp_path) == ["x.wav"]
    assert read_audio(path).samples.shape == (1, 50_000)


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AudioWriteError, match="No space left on device"):
        write_audio(tmp_path / "x.wav", noise(1, 100), 44100)
    assert os.listdir(tmp_path) == []


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Files that grow beyond `size` bytes are refused by the system, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("missing", [1, 300, 3000, 20_000])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_a_disk_that_is_full_for_the_last_block_leaves_nothing(tmp_path: Path, format: str, missing: int) -> None:
    x = noise(2, 66_150)
    path = tmp_path / f"x.{format}"
    write_audio(path, x, 44100)
    size = path.stat().st_size
    path.unlink()
    with room(size - missing), pytest.raises(AudioWriteError, match="File too large"):
        write_audio(path, x, 44100)
    assert os.listdir(tmp_path) == []
    with room(size):
        write_audio(path, x, 44100)
    assert path.stat().st_size == size


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_an_interrupt_while_the_encoder_works_is_not_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str
) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    x = noise(2, 30_000)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop), AudioWriter(tmp_path / f"x.{format}", 44100, channels=2) as writer:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            while True:
                writer.write(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_audio(tmp_path / "x.wav", noise(1, 100), 44100)
    assert (tmp_path / "x.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_every_name_that_the_system_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("\N{MUSICAL SYMBOL G CLEF}" * 62 + "xyz.wav")  # 255 bytes
    write_audio(path, noise(1, 100), 44100)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_or_a_file_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AudioWriteError, match="No such file or directory"):
        write_audio(tmp_path / "missing" / "x.wav", noise(1, 10), 44100)
    with pytest.raises(AudioWriteError, match="Not a directory"):
        write_audio(tmp_path / "file" / "x.wav", noise(1, 10), 44100)
    with pytest.raises(AudioWriteError, match="is a directory"):
        write_audio(tmp_path, noise(1, 10), 44100, format="wav")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("metatasnet_fast.audio.write._File", forbidden)
    with pytest.raises(AudioWriteError, match="Permission denied"):
        write_audio(tmp_path / "x.wav", noise(1, 10), 44100)


@pytest.mark.parametrize(
    ("name", "sample_rate", "channels", "advice"),
    [
        ("x.mp3", 96000, 2, "use wav or flac, or resample to 48000 Hz"),
        ("x.mp3", 44100, 6, "use wav"),
        ("x.flac", 44100, 9, "use wav"),
        ("x.flac", 65537, 2, "use wav"),
        ("x.flac", 700000, 2, "use wav"),
        ("x.ogg", 384000, 2, "use wav or flac"),
        ("x.wav", 44100, 0, "1 to 1024 channels"),
        ("x.wav", 0, 1, "positive whole number"),
        ("x.m4a", 44100, 2, "choose one of wav, flac, ogg, mp3"),
        ("x", 44100, 2, "choose one of wav, flac, ogg, mp3"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_advice(
    tmp_path: Path, name: str, sample_rate: int, channels: int, advice: str
) -> None:
    with pytest.raises(AudioWriteError, match=advice):
        write_audio(tmp_path / name, torch.zeros(channels, 10), sample_rate)
    assert os.listdir(tmp_path) == []


def test_a_subtype_of_another_format_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(AudioWriteError, match="use int16 or int24, or the format wav"):
        write_audio(tmp_path / "x.flac", torch.zeros(1, 10), 44100, subtype="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["wav", "ogg"])
def test_nan_is_never_written(tmp_path: Path, format: str, value: float) -> None:
    x = torch.zeros(2, 100)
    x[1, 50] = value
    with pytest.raises(AudioWriteError, match="NaN or infinity"):
        write_audio(tmp_path / f"x.{format}", x, 44100)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_no_samples_make_no_file(tmp_path: Path, format: str) -> None:
    with pytest.raises(AudioWriteError, match="no samples"):
        write_audio(tmp_path / f"x.{format}", torch.zeros(2, 0), 44100)
    assert os.listdir(tmp_path) == []


def test_a_wav_file_beyond_4_gib_is_refused_before_it_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(AudioWriteError, match="4 GiB"), AudioWriter(tmp_path / "x.wav", 44100, channels=2) as writer:
        writer.write(torch.zeros(1, 1).expand(2, 2**30))
    assert os.listdir(tmp_path) == []


def test_a_length_that_a_wav_file_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    most = (2**32 - 2**16) // 4
    AudioWriter(tmp_path / "x.wav", 44100, channels=2, frames=most)
    AudioWriter(tmp_path / "x.flac", 44100, channels=2, frames=most + 1)
    with pytest.raises(AudioFormatError, match="4 GiB.*write flac"):
        AudioWriter(tmp_path / "x.wav", 44100, channels=2, frames=most + 1)
    assert os.listdir(tmp_path) == []


def test_other_blocks_are_refused(tmp_path: Path) -> None:
    for block in (torch.zeros(3, 10), torch.zeros(10), torch.zeros(2, 10, dtype=torch.int16)):
        with pytest.raises(ShapeError), AudioWriter(tmp_path / "x.wav", 44100, channels=2) as writer:
            writer.write(block)
    with pytest.raises(RuntimeError, match="with"):
        AudioWriter(tmp_path / "x.wav", 44100, channels=2).write(torch.zeros(2, 10))
    assert os.listdir(tmp_path) == []
