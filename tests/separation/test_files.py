"""Files in, files out, in memory that does not grow with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import INSTRUMENTS, Separator
from metatasnet_fast.audio import AudioWriter, read_audio, write_audio
from metatasnet_fast.errors import (
    AudioFormatError,
    AudioReadError,
    AudioWriteError,
    EmptyAudioError,
    MetaTasNetError,
    OutputError,
)
from metatasnet_fast.separation import separator as separator_module
from metatasnet_fast.separation import two_stems

from .conftest import music

pytest.importorskip("soundfile", reason="soundfile, which reads and writes audio, is not installed")

SAMPLES = 300_001


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "my.song.wav"
    write_audio(path, music(2, SAMPLES), 44100, subtype="float32")
    return path


@pytest.mark.parametrize("spool", [2**30, 2_000_000, 0])
def test_files_are_what_the_array_gives(
    separator: Separator, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool: int
) -> None:
    monkeypatch.setattr(separator_module, "SPOOL_BYTES", spool)
    expected = separator.separate(read_audio(song).samples, 44100)
    separation = separator.separate_file(song, tmp_path / "out" / "deep", subtype="float32")
    assert len(separation) == 0 and tuple(separation.files) == INSTRUMENTS
    for name, path in separation.files.items():
        assert path == tmp_path / "out" / "deep" / "my.song" / f"{name}.wav"
        written = read_audio(path)
        assert written.sample_rate == 44100 and written.samples.shape == (2, SAMPLES)
        torch.testing.assert_close(written.samples, expected[name], rtol=0, atol=1e-6)
    for name, gains in separation.gains.items():
        assert gains == pytest.approx(expected.gains[name], rel=1e-5)
    assert sorted(p.name for p in (tmp_path / "out" / "deep" / "my.song").iterdir()) == sorted(
        f"{name}.wav" for name in INSTRUMENTS
    )


def test_without_a_folder_the_stems_come_back(separator: Separator, song: Path) -> None:
    separation = separator.separate_file(song, stems=["vocals"])
    assert list(separation) == ["vocals"] and separation["vocals"].shape == (2, SAMPLES) and not separation.files


def test_names_formats_and_sums_are_chosen(separator: Separator, song: Path, tmp_path: Path) -> None:
    separation = separator.separate_file(
        song, tmp_path, two_stems("vocals"), name="{stem} of {track}", format="flac", subtype="int24"
    )
    assert separation.files == {
        "vocals": tmp_path / "vocals of my.song.flac",
        "no_vocals": tmp_path / "no_vocals of my.song.flac",
    }
    assert all(read_audio(path).samples.shape == (2, SAMPLES) for path in separation.files.values())


def test_clipping_by_an_integer_format_is_reported(separator: Separator, tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    write_audio(path, 20 * music(1, 9000), 44100, subtype="float32")
    separator.mixture_consistency = True
    warnings = separator.separate_file(path, tmp_path, {"everything": INSTRUMENTS}).warnings
    assert len(warnings) == 1 and "everything exceed full scale" in warnings[0]
    assert separator.separate_file(path, tmp_path, subtype="float32").warnings == ()


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"name": "{track}"}, OutputError),
        ({"name": "{artist}/{stem}"}, OutputError),
        ({"format": "doc"}, AudioWriteError),
        ({"subtype": "int3"}, AudioWriteError),
    ],
)
def test_impossible_files_are_refused_before_the_work(
    separator: Separator, song: Path, tmp_path: Path, wishes: dict[str, Any], error: type[MetaTasNetError]
) -> None:
    separator.progress = lambda progress: pytest.fail("the work had begun")
    with pytest.raises(error):
        separator.separate_file(song, tmp_path / "out", **wishes)
    assert not (tmp_path / "out").exists()


def test_stems_too_long_for_wav_are_refused_before_the_work(
    separator: Separator, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metatasnet_fast.audio.write.WAV_MAX_BYTES", SAMPLES * 2 * 2 - 1)
    separator.progress = lambda progress: pytest.fail("the work had begun")
    with pytest.raises(AudioFormatError, match="write flac"):
        separator.separate_file(song, tmp_path / "out", format="wav")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_no_file(
    separator: Separator, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AudioWriter.write

    def write(self: Any, block: torch.Tensor) -> None:
        if self.path.stem == "other":
            raise AudioWriteError("The disk is full.")
        real(self, block)

    monkeypatch.setattr(AudioWriter, "write", write)
    with pytest.raises(AudioWriteError, match="full"):
        separator.separate_file(song, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_unreadable_files_are_typed_errors(separator: Separator, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(EmptyAudioError):
        separator.separate_file(tmp_path / "empty.wav")
    with pytest.raises(AudioReadError):
        separator.separate_file(tmp_path / "absent.wav")
    (tmp_path / "blocking").touch()
    write_audio(tmp_path / "short.wav", music(1, 900), 44100)
    with pytest.raises(OutputError, match="blocking"):
        separator.separate_file(tmp_path / "short.wav", tmp_path / "blocking")


MEASURE = """
import resource, sys
import torch
from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.audio import AudioWriter
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.separation import separator as module

torch.set_num_threads(1)
module.SPOOL_BYTES = 8 * 2**20
torch.manual_seed(0)
config = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=8, stages_num=1)
separator = Separator(MultiTasNet(config), "cpu", "reference", batch_size=2)
for minutes in (4, 14):
    path = f"{sys.argv[1]}/{minutes}.wav"
    with AudioWriter(path, 8000, 1) as writer:
        for _ in range(minutes):
            writer.write(0.1 * torch.randn(1, 480000))
    separator.separate_file(path, sys.argv[1])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten minutes more are 115 MB of float32 signals; the peak may not grow by more than 2."""
    root = Path(__file__).parents[2]
    # Freed memory goes back to the system at once: the peak is that of what is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    short, long = map(float, done.stdout.split())
    assert long - short < 2, f"{short:.0f} MiB for 4 minutes, {long:.0f} MiB for 14"
