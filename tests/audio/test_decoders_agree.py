"""What is read block by block is what another decoder makes of the whole file, sample by sample, for every container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import open_audio

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")

from .support import av, decode_with_av, encode  # noqa: E402

RATE = 48000
SAMPLES = 100_003


def integers(channels: int = 2) -> torch.Tensor:
    """Noise of 16-bit integers, full scale 1: no format has to round them."""
    values = torch.randint(-12_000, 12_000, (channels, SAMPLES), generator=torch.Generator().manual_seed(0))
    return values.float() / 32768


def read(path: Path) -> torch.Tensor:
    with open_audio(path) as stream:
        blocks = list(stream)
    assert stream.warnings == [] and len(blocks) > 1
    return torch.cat(blocks, 1)


def encoded(path: Path, codec: str) -> Path:
    sample_format = {"wavpack": "s16p", "tta": "s16", "alac": "s16p", "flac": "s16"}.get(codec)
    try:
        return encode(path, integers(), RATE, codec, options={"strict": "experimental"}, sample_format=sample_format)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this build of FFmpeg cannot encode {codec}: {error}")


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"), ("W64", "PCM_24"), ("AIFF", "PCM_16"), ("AIFF", "PCM_24"), ("CAF", "PCM_16"), ("CAF", "FLOAT"),
        ("AU", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("CAF", "ALAC_16"),
    ],
)  # fmt: skip
def test_lossless_files_of_libsndfile_are_exact(tmp_path: Path, container: str, subtype: str) -> None:
    path, x = tmp_path / f"x.{container.lower()}", integers()
    sf.write(path, x.T.numpy(), RATE, format=container, subtype=subtype)
    assert torch.equal(read(path), x)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.m4a", "alac"), ("x.mka", "flac"), ("x.mkv", "pcm_s16le"), ("x.mov", "pcm_s24le"), ("x.avi", "pcm_s16le"),
        ("x.wv", "wavpack"), ("x.tta", "tta"), ("x.caf", "alac"), ("x.nut", "pcm_s16le"), ("x.wav", "pcm_f64le"),
        ("x.aiff", "pcm_s16be"), ("x.mp4", "flac"), ("x.oga", "flac"),
    ],
)  # fmt: skip
def test_lossless_files_of_ffmpeg_are_exact(tmp_path: Path, name: str, codec: str) -> None:
    assert torch.equal(read(encoded(tmp_path / name, codec)), integers())


@pytest.mark.parametrize(("subtype", "error"), [("VORBIS", 1e-5), ("OPUS", 2e-3)])
def test_ogg_read_by_libsndfile_is_what_ffmpeg_decodes(tmp_path: Path, subtype: str, error: float) -> None:
    path = tmp_path / "x.ogg"
    sf.write(path, integers().T.numpy(), RATE, format="OGG", subtype=subtype)
    ours, theirs = read(path), decode_with_av(path)
    length = min(ours.shape[1], theirs.shape[1])
    assert ours.shape[1] == SAMPLES and abs(theirs.shape[1] - SAMPLES) <= 1024
    difference = (ours[:, :length] - theirs[:, :length]).norm(dim=0)
    assert float(difference[1000:].max()) < error


def test_mp3_read_by_ffmpeg_is_what_mpg123_decodes(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    sf.write(path, 0.5 * integers().T.numpy(), RATE, format="MP3", subtype="MPEG_LAYER_III")
    ours, theirs = read(path), torch.from_numpy(sf.read(path, dtype="float32")[0].T.copy())
    assert ours.shape == theirs.shape == (2, SAMPLES)
    assert float((ours - theirs).abs().max()) < 1e-4


@pytest.mark.ffmpeg
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.m4a", "aac"), ("x.mp3", "libmp3lame"), ("x.webm", "libopus"), ("x.wma", "wmav2"), ("x.ac3", "ac3"),
        ("x.ts", "mp2"), ("x.avi", "mp2"), ("x.aac", "aac"), ("x.flv", "aac"), ("x.eac3", "eac3"),
        ("x.mkv", "flac"), ("x.mov", "alac"), ("x.caf", "pcm_s16be"), ("x.ogg", "flac"),
    ],
)  # fmt: skip
def test_files_are_what_the_program_ffmpeg_decodes(tmp_path: Path, name: str, codec: str) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    path = encoded(tmp_path / name, codec)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "f32le", "-"]
    theirs = np.frombuffer(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, "<f4").reshape(-1, 2).T
    ours = read(path).numpy()
    assert ours.shape == theirs.shape
    # Opus: FFmpeg's own decoder and libopus differ; MP2: its arithmetic does from version to version.
    limit = {"libopus": 5e-3, "mp2": 1e-4}.get(codec, 1e-5)
    assert float(np.abs(ours - theirs)[:, 1000:].max()) < limit
