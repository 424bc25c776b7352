"""Instruments of other names and number, from prepare and train to separate, evaluate, catalogue and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metatasnet_fast.cli.main import main
from metatasnet_fast.evaluation import load_scores

sf: Any = pytest.importorskip("soundfile")

RATE = 16000
SECONDS = 8
NAMES = ("organ", "bells", "shaker")
NETWORK = "--stages_num 1 --sampling_rate 8000 --N 64 --B 32 --H 64 --layers 5 --stack 1 --E_1 1 --E_2 1 --filters 1"
TRAINING = (
    "--L 20 --W 10 --batch_size 4 --time_length 1 --learning_rate 0.004 --stats_items 8 --steps 40 --validate_every 40"
)


def notes(rng: np.random.Generator, low: float, high: float, every: float, kind: str) -> NDArray[np.float64]:
    """Notes at random times, of random pitches between two frequencies in Hz."""
    samples = SECONDS * RATE
    out, t, at = np.zeros(samples), np.arange(int(0.8 * RATE)) / RATE, 0
    while at < samples:
        hertz = low * (high / low) ** rng.random()
        tone = {
            "organ": sum(np.sin(2 * np.pi * hertz * k * t) / k for k in (1, 2, 3)) * np.minimum(1, 30 * (t[-1] - t)),
            "bells": np.sin(2 * np.pi * hertz * t + 2 * np.sin(2.8 * np.pi * hertz * t)) * np.exp(-6 * t),
            "shaker": np.diff(rng.standard_normal(len(t) + 1)) * np.exp(-25 * t),
        }[kind]
        end = min(len(tone), samples - at)
        out[at : at + end] += tone[:end]
        at += int(every * RATE * rng.uniform(0.5, 1.5))
    return 0.2 * out / np.abs(out).max()


def write_tracks(root: Path) -> None:
    for split, seeds in (("train", range(3)), ("valid", (3,)), ("test", (4,))):
        for seed in seeds:
            rng = np.random.default_rng(seed)
            folder = root / split / f"track {seed}"
            folder.mkdir(parents=True)
            for name, (low, high, every) in zip(NAMES, ((80, 250, 0.5), (900, 2500, 0.4), (1, 1, 0.25)), strict=True):
                sf.write(folder / f"{name}.wav", np.stack([notes(rng, low, high, every, name)] * 2, 1), RATE)


def test_three_instruments_of_own_names_go_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tracks(Path("data"))

    def run(*argv: str) -> None:
        assert main(list(argv)) == 0, capsys.readouterr().err

    run("prepare", "--stems", "data", "-o", "cache", "--rates", "8000", "--instruments", ",".join(NAMES))
    run(
        "train",
        "cache",
        "-o",
        "run",
        "--instruments",
        ",".join(NAMES),
        "--device",
        "cpu",
        *NETWORK.split(),
        *TRAINING.split(),
    )
    losses = [json.loads(line)["loss"] for line in Path("run/log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert np.isfinite(losses).all()

    Path("songs").mkdir()
    stems = [sf.read(f"data/test/track 4/{name}.wav")[0] for name in NAMES]
    sf.write("songs/track 4.wav", sum(stems), RATE)
    model = ("--model", "run/best.pt", "--device", "cpu")
    run("separate", "songs", "-o", "separated", "--page", *model)
    assert sorted(path.name for path in Path("separated/run-best/track 4").glob("[!.]*")) == sorted(
        [*(f"{name}.wav" for name in NAMES), "track 4.html"]
    )
    run("separate", "songs", "-o", "two", "--two-stems", "bells", *model)
    assert sorted(path.stem for path in Path("two/run-best/track 4").glob("*.wav")) == ["bells", "no_bells"]

    run("evaluate", "--musdb", "data", "-o", "evaluated", "--metrics", "SDR,uSDR", *model)
    run("catalogue", "run", "songs", "--out", "catalogue", *model)
    for name, estimates in (("of files", "separated"), ("of the catalogue", "catalogue")):
        run("score", "data", estimates, "--subset", "test", "-o", name, "--metrics", "SDR,uSDR")
        (found,), (expected,) = load_scores(name), load_scores("evaluated")
        assert set(found.stems) == set(NAMES)
        for stem in NAMES:
            assert found.value(stem, "uSDR") == pytest.approx(expected.value(stem, "uSDR"), abs=0.01)
    assert list(Path("catalogue").rglob("report.html"))
