"""A data set laid out like MUSDB18 is separated and scored, resumed, and outlives a bad track."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import MetaTasNetError
from metatasnet_fast.evaluation import TrackScores, evaluate_track
from metatasnet_fast.evaluation.musdb18 import open_musdb
from metatasnet_fast.evaluation.runner import evaluate_tracks
from tests.support import TINY, golden

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("musdb", exc_type=(ImportError, RuntimeError))  # RuntimeError: no ffmpeg program

RATE = 44100
STEMS = ("drums", "bass", "other", "vocals")


def write_track(folder: Path, seed: int, silent: str | None = None) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stems = {name: 0.1 * rng.standard_normal((int(1.5 * RATE), 2)) for name in STEMS}
    if silent:
        stems[silent][:] = 0
    for name, audio in {**stems, "mixture": sum(stems.values())}.items():
        soundfile.write(folder / f"{name}.wav", audio, RATE, subtype="FLOAT")


@pytest.fixture
def musdb_root(tmp_path: Path) -> Path:
    (tmp_path / "musdb" / "train").mkdir(parents=True)
    for seed, name in enumerate(("A - One", "B - Two", "C - Three")):
        write_track(tmp_path / "musdb" / "test" / name, seed)
    return tmp_path / "musdb"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MultiTasNet(TINY).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_scores_are_those_of_the_separated_stems(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    separator = Separator(model, "cpu")
    run = evaluate_tracks(open_musdb(musdb_root), separator, tmp_path / "out", metrics=["SDR"], workers=2)
    assert [o.status for o in run.outcomes] == ["done"] * 3
    track = open_musdb(musdb_root)[1].read()
    estimates = {k: v.T for k, v in separator.separate(track.mixture.T, RATE).items()}
    expected = evaluate_track(track.stems, estimates, name="B - Two", metrics=["SDR"])
    assert (tmp_path / "out" / "test" / "B - Two.json").read_text() == expected.json()


def test_a_second_run_does_only_what_is_missing(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    separator, out = Separator(model, "cpu"), tmp_path / "out"
    first = evaluate_tracks(open_musdb(musdb_root)[:2], separator, out, metrics=["SDR"])
    second = evaluate_tracks(open_musdb(musdb_root), separator, out, metrics=["SDR"])
    assert sorted(o.status for o in second.outcomes) == ["done", "kept", "kept"]
    assert len(first.scores) == 2 and len(second.scores) == 3


def test_other_settings_do_not_mix_into_one_folder(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    tracks, out = open_musdb(musdb_root)[:1], tmp_path / "out"
    evaluate_tracks(tracks, Separator(model, "cpu"), out, metrics=["SDR"])
    with pytest.raises(MetaTasNetError, match="mode differ"):
        evaluate_tracks(tracks, Separator(model, "cpu", mode="reference"), out, metrics=["SDR"])
    again = evaluate_tracks(tracks, Separator(model, "cpu", mode="reference"), out, metrics=["SDR"], overwrite=True)
    assert again.outcomes[0].status == "done"


def test_a_bad_track_is_named_and_the_rest_is_done(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    (musdb_root / "test" / "B - Two" / "bass.wav").write_bytes(b"not audio")
    run = evaluate_tracks(open_musdb(musdb_root), Separator(model, "cpu"), tmp_path / "out", metrics=["SDR"])
    assert [o.name for o in run.failures] == ["B - Two"]
    assert len(run.scores) == 2
    with pytest.raises(MetaTasNetError, match="B - Two"):
        evaluate_tracks(
            open_musdb(musdb_root), Separator(model, "cpu"), tmp_path / "strict", metrics=["SDR"], strict=True
        )


def test_a_silent_stem_is_reported_and_counts_no_frame(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    write_track(musdb_root / "test" / "D - Silent", 9, silent="bass")
    tracks = [t for t in open_musdb(musdb_root) if t.name == "D - Silent"]
    run = evaluate_tracks(tracks, Separator(model, "cpu"), tmp_path / "out", metrics=["SDR"])
    assert "bass" in run.outcomes[0].warnings[0]
    assert run.scores[0].valid_frames("drums", "SDR") == 0


def test_the_original_package_gives_the_same_scores(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("museval")
    tracks, separator = open_musdb(musdb_root)[:1], Separator(model, "cpu")
    ours, theirs = (
        evaluate_tracks(tracks, separator, tmp_path / engine, engine=engine).scores[0] for engine in ("fast", "museval")
    )
    for stem in STEMS:
        for metric in ("SDR", "ISR", "SIR", "SAR"):
            assert np.allclose(ours.targets[stem][metric], theirs.targets[stem][metric], atol=1e-5)


def test_the_command_prints_the_table_and_resumes(
    musdb_root: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "evaluate",
        "--musdb",
        str(musdb_root),
        "--model",
        str(model),
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main([*argv, "--metrics", "sdr"]) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out
    assert main([*argv, "--metrics", "sdr"]) == 0
    assert capsys.readouterr().out.count("kept") == 3
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"] == ["SDR"]
    shutil.rmtree(musdb_root / "test" / "A - One")
    write_track(musdb_root / "test" / "E - New", 3)
    (musdb_root / "test" / "E - New" / "drums.wav").write_bytes(b"")
    assert main([*argv, "--metrics", "sdr"]) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--musdb", "absent"], "There is no folder"),
        (["--engine", "magic"], "magic"),
        (["--metrics", "PESQ"], "PESQ"),
        (["--workers", "0"], "workers"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    options: list[str], said: str, musdb_root: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "--musdb", str(musdb_root), "--model", str(model), "-o", str(tmp_path / "out"), *options]
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_the_authors_evaluation_is_reproduced_to_its_scores() -> None:
    stempeg = pytest.importorskip("stempeg", exc_type=(ImportError, RuntimeError))
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg, with which stempeg decodes, is not installed")
    recording = golden("evaluate_track")
    streams, rate = stempeg.read_stems(stempeg.example_stem_path(), ffmpeg_format="s16le")
    separation = Separator(recording.network(), "cpu", "reference", "float64", "reference").separate(streams[0].T, rate)
    scores = evaluate_track(
        dict(zip(STEMS, streams[1:5], strict=True)), {k: v.T for k, v in separation.items()}, name="recorded"
    )
    for target in recording.meta["museval_json"]["targets"]:
        for index, frame in enumerate(target["frames"]):
            for metric, value in frame["metrics"].items():
                assert abs(scores.targets[target["name"]][metric][index] - value) < 0.01, (
                    target["name"],
                    index,
                    metric,
                )


def test_scores_of_an_earlier_run_are_read_back(tmp_path: Path) -> None:
    scores = TrackScores("x", {s: {"SDR": np.array([1.0, np.nan])} for s in STEMS})
    assert TrackScores.read(scores.write(tmp_path)).json() == scores.json()
