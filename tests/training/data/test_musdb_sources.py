"""MUSDB18 in both editions, with files that ffmpeg makes here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.errors import MissingDependencyError, TrainingDataError
from metatasnet_fast.training.data import Cache
from metatasnet_fast.training.data.prepare import prepare
from metatasnet_fast.training.data.sources import MUSDB_VALIDATION, find_musdb

sf = pytest.importorskip("soundfile")

RATE = 44100
RATES = (8000, 16000)
VALIDATION = "Leaf - Summerghost"
WriteStems = Callable[..., Path]

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="ffmpeg or ffprobe is not installed"
)


def tones(seconds: float = 1.0) -> np.ndarray:
    """(4, samples, 2): one tone for each stem, in tune with nothing."""
    t = np.arange(int(seconds * RATE))[:, None] / RATE
    return np.array([0.15 * np.sin(2 * np.pi * hertz * t + [0, 1]) for hertz in (211.0, 97.0, 523.0, 1051.0)])


def write_stem_mp4(path: Path, streams: np.ndarray) -> None:
    """Streams (n, samples, 2) as AAC in one file, as MUSDB18 has mixture and stems."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, maps = [], []
    for index, audio in enumerate(streams):
        wav = path.parent / f"{index}.wav"
        sf.write(wav, audio, RATE)
        inputs += ["-i", str(wav)]
        maps += ["-map", str(index)]
    options = ["-c:a", "aac", "-b:a", "192k", "-f", "mp4", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *inputs, *maps, *options], check=True)
    for index in range(len(streams)):
        (path.parent / f"{index}.wav").unlink()


@needs_ffmpeg
def test_the_five_streams_become_four_stems(tmp_path: Path) -> None:
    pytest.importorskip("stempeg", exc_type=(ImportError, RuntimeError))
    stems = tones()
    for name in ("A - B", VALIDATION):
        write_stem_mp4(tmp_path / "musdb" / "train" / f"{name}.stem.mp4", np.array([stems.sum(0), *stems]))
    (tmp_path / "musdb" / "train" / "Bad - One.stem.mp4").write_bytes(b"no film")
    write_stem_mp4(tmp_path / "musdb" / "test" / "Two - Streams.stem.mp4", stems[:2])
    result = prepare(find_musdb(tmp_path / "musdb"), tmp_path / "cache", rates=RATES)
    assert {o.name: o.status for o in result.outcomes} == {
        "A - B": "done",
        VALIDATION: "done",
        "Bad - One": "failed",
        "Two - Streams": "failed",
    }
    errors = {o.name: str(o.error) for o in result.failures}
    assert "cannot be decoded" in errors["Bad - One"] and "2 audio streams" in errors["Two - Streams"]
    assert all(error.endswith(".") and "\n" not in error for error in errors.values())
    cache = Cache.open(tmp_path / "cache")
    assert [t.name for t in cache.tracks("train")] == ["A - B"]
    assert [t.name for t in cache.tracks("valid")] == [VALIDATION]
    decoded = cache.tracks("train")[0].stems(16000)[:]
    t = np.arange(decoded.shape[-1]) / 16000
    for stem, hertz in enumerate((211.0, 97.0, 523.0, 1051.0)):
        middle = slice(3000, 13000)
        wave = np.exp(-2j * np.pi * hertz * t[middle])
        assert 2 * abs(np.mean(decoded[stem, 0, middle] * wave)) == pytest.approx(0.15, rel=0.02)


def test_the_wav_edition_needs_neither_musdb_nor_ffmpeg(
    tmp_path: Path, write_stems: WriteStems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for place in ("train/A - B", f"train/{VALIDATION}", "test/C - D"):
        write_stems(tmp_path / "hq" / place, stems=(*INSTRUMENTS, "mixture"))
    prepare(find_musdb(tmp_path / "hq"), tmp_path / "cache", rates=RATES)
    cache = Cache.open(tmp_path / "cache")
    names = {split: [t.name for t in cache.tracks(split)] for split in ("train", "valid", "test")}
    assert names == {"train": ["A - B"], "valid": [VALIDATION], "test": ["C - D"]}


def test_without_ffmpeg_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "A - B.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="ffmpeg and ffprobe.*MUSDB18-HQ"):
        prepare(find_musdb(tmp_path), tmp_path / "cache", rates=RATES)
    assert not (tmp_path / "cache").exists()


def test_the_validation_tracks_are_those_of_musdb() -> None:
    musdb = pytest.importorskip("musdb", exc_type=(ImportError, RuntimeError))
    yaml = pytest.importorskip("yaml")
    setup = yaml.safe_load((Path(musdb.__file__).parent / "configs" / "mus.yaml").read_text())
    assert set(setup["validation_tracks"]) == MUSDB_VALIDATION


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="not MUSDB18"):
        find_musdb(tmp_path)
