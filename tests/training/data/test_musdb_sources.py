"""MUSDB18 in both editions, without the program ffmpeg."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Cache
from metatasnet_fast.training.data.prepare import prepare
from metatasnet_fast.training.data.sources import MUSDB_VALIDATION, find_musdb

av = pytest.importorskip("av")

RATE = 44100
RATES = (8000, 16000)
VALIDATION = "Leaf - Summerghost"
WriteStems = Callable[..., Path]


def tones(seconds: float = 1.0) -> np.ndarray:
    """(4, samples, 2): one tone for each stem, in tune with nothing."""
    t = np.arange(int(seconds * RATE))[:, None] / RATE
    return np.array([0.15 * np.sin(2 * np.pi * hertz * t + [0, 1]) for hertz in (211.0, 97.0, 523.0, 1051.0)])


def write_stem_mp4(path: Path, streams: np.ndarray) -> None:
    """Streams (n, samples, 2) as AAC in one file, as MUSDB18 has mixture and stems."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        tracks = [container.add_stream("aac", rate=RATE, layout="stereo", bit_rate=192_000) for _ in streams]
        for track, audio in zip(tracks, streams, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T, np.float32), "fltp", "stereo")
            frame.sample_rate = RATE
            for part in av.AudioResampler("fltp", "stereo", RATE, frame_size=1024).resample(frame):
                container.mux(track.encode(part))
            container.mux(track.encode(None))


def test_the_five_streams_become_four_stems(tmp_path: Path) -> None:
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
    assert "cannot be read as audio" in errors["Bad - One"] and "holds no bass" in errors["Two - Streams"]
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


def test_the_validation_tracks_are_those_of_musdb() -> None:
    musdb = importlib.util.find_spec("musdb")  # not imported: that needs the program ffmpeg
    if musdb is None or musdb.origin is None:
        pytest.skip("musdb is not installed")
    yaml = pytest.importorskip("yaml")
    setup = yaml.safe_load((Path(musdb.origin).parent / "configs" / "mus.yaml").read_text())
    assert set(setup["validation_tracks"]) == MUSDB_VALIDATION


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="not MUSDB18"):
        find_musdb(tmp_path)
