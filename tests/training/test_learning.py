"""Training teaches: a small network separates music that it has not heard better and better."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast.cli.main import main
from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.reference import si_sdr
from metatasnet_fast.training.data import Cache, Track
from metatasnet_fast.training.journal import read_journal
from metatasnet_fast.training.launch import plan_run, train
from metatasnet_fast.training.validation import validation_signals
from tests.training.songs import write_cache

SONGS = "METATASNET_SONGS"
"""A folder of songs, each with drums, bass, other and vocals."""

HELD_OUT = "METATASNET_HELD_OUT"
"""The song among them to validate on; by default the first."""

REDUCED = {"similarity_loss_weight": 0.0, "dissimilarity_loss_weight": 0.0, "threads": 1}


def improvements(cache: Path, run: Path, rate: int) -> dict[str, float]:
    """SI-SDR of the last validation over that of the mixture, dB, means over the tracks in which a stem counts and sounds."""
    last = [entry for entry in read_journal(run) if entry["kind"] == "valid"][-1]
    stage = max(name.split("/")[0] for name in last["si_sdr"])
    tracks = Cache.open(cache).tracks("valid")
    found = {}
    for index, stem in enumerate(INSTRUMENTS):
        scores = [mixture_score(track, rate, index) for track in tracks if track.counts[index]]
        values = [value for value in scores if value is not None]
        if values:
            found[stem] = last["si_sdr"][f"{stage}/{stem}"] - sum(values) / len(values)
    return found


def mixture_score(track: Track, rate: int, stem: int) -> float | None:
    """None for a stem that is silent."""
    (mix,), (sources,) = validation_signals(track, [rate], range(4))
    return float(si_sdr(mix, sources[:, stem])) if sources[:, stem].any() else None


def teach(cache: Path, run: Path, given: Mapping[str, Any]) -> None:
    assert train(cache, run, plan_run(run, {**REDUCED, **given})) is None


def test_a_minute_of_generated_music_teaches_a_tiny_network(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", seconds=8.0, train=8, valid=1, rates=(8000,))
    network = {"N": 64, "B": 24, "H": 24, "layers": 4, "stack": 1, "num_mels": 16, "stages_num": 1}
    recipe = {"batch_size": 6, "time_length": 0.5, "steps": 160, "learning_rate": 0.05, "sgdr_period": 161}
    teach(cache, tmp_path / "run", {**network, **recipe, "stats_items": 32, "validate_every": 160})
    found = improvements(cache, tmp_path / "run", 8000)
    assert sum(found.values()) / 4 > 2, found
    assert sorted(found.values())[1] > 2, found  # at least three stems


@pytest.mark.slow
@pytest.mark.skipif(SONGS not in os.environ, reason=f"needs a folder of songs in {SONGS}")
def test_minutes_of_real_songs_teach_a_small_network_to_separate_another_song_better_than_it_did(
    tmp_path: Path,
) -> None:
    songs = Path(os.environ[SONGS])
    names = sorted(path.name for path in songs.iterdir() if path.is_dir())
    held_out = os.environ.get(HELD_OUT, names[0])
    cache = tmp_path / "cache"
    prepared = ["--stems", str(songs), "--held-out", held_out, "--out", str(cache), "--rates", "8000"]
    assert main(["prepare", *prepared]) == 0
    network = {"N": 64, "B": 32, "H": 48, "layers": 6, "stack": 1, "num_mels": 64, "stages_num": 1}
    recipe = {"batch_size": 4, "time_length": 2.0, "steps": 800, "learning_rate": 0.02, "sgdr_period": 801, "ema": 0.98}
    teach(cache, tmp_path / "run", {**network, **recipe, "stats_items": 100, "validate_every": 100})
    scores = [entry["si_sdr"] for entry in read_journal(tmp_path / "run") if entry["kind"] == "valid"]
    learnt = {stem: scores[-1][f"stage0/{stem}"] - scores[0][f"stage0/{stem}"] for stem in ("drums", "vocals")}
    assert min(learnt.values()) > 3, learnt
