"""A data set laid out like MUSDB18 is separated and scored, resumed, and outlives a bad track."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from metatasnet_fast import Separator
from metatasnet_fast.audio.read import read_stems
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import MetaTasNetError, OutOfMemoryError
from metatasnet_fast.evaluation import METRICS, BssScores, Scoring, TrackScores, bss_eval, evaluate_track, track, tracks
from metatasnet_fast.evaluation.runner import evaluate_tracks
from metatasnet_fast.evaluation.tracks import open_tracks
from tests.museval_oracle import museval_module
from tests.recorded_track import decode_here
from tests.support import golden

from .conftest import RATE, STEMS, write_track


def test_scores_are_those_of_the_separated_stems(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    separator = Separator(model, "cpu")
    run = evaluate_tracks(open_tracks(musdb_root, "test"), separator, tmp_path / "out", Scoring(("SDR",)), workers=2)
    assert [o.status for o in run.outcomes] == ["done"] * 3
    track = open_tracks(musdb_root, "test")[1].read()
    assert track.mixture is not None
    estimates = dict(separator.separate(track.mixture, RATE).items())
    expected = evaluate_track(track.stems, estimates, name="B - Two", scoring=Scoring(["SDR"]))
    assert (tmp_path / "out" / "test" / "B - Two.json").read_text() == expected.json()


def test_a_page_plays_what_was_separated_beside_the_true_stems(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    separator, tracks = Separator(model, "cpu"), open_tracks(musdb_root, "test")[:1]
    run = evaluate_tracks(tracks, separator, tmp_path / "out", Scoring(("SDR",)), page="file")
    text = (tmp_path / "out" / "test" / f"{tracks[0].name}.html").read_text("utf-8")
    assert run.outcomes[0].page is not None and not run.outcomes[0].warnings
    assert text.count('data-do="reference"') == len(STEMS) and text.count("<dt>SDR</dt>") == len(STEMS)
    assert f"<dt>Engine</dt><dd>{separator.describe()}</dd>" in text


def test_a_second_run_does_only_what_is_missing(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    separator, out = Separator(model, "cpu"), tmp_path / "out"
    first = evaluate_tracks(open_tracks(musdb_root, "test")[:2], separator, out, Scoring(("SDR",)))
    second = evaluate_tracks(open_tracks(musdb_root, "test"), separator, out, Scoring(("SDR",)))
    assert sorted(o.status for o in second.outcomes) == ["done", "kept", "kept"]
    assert len(first.scores) == 2 and len(second.scores) == 3


def test_other_settings_do_not_mix_into_one_folder(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    tracks, out = open_tracks(musdb_root, "test")[:1], tmp_path / "out"
    evaluate_tracks(tracks, Separator(model, "cpu"), out, Scoring(("SDR",)))
    with pytest.raises(MetaTasNetError, match="mode differ"):
        evaluate_tracks(tracks, Separator(model, "cpu", mode="reference"), out, Scoring(("SDR",)))
    again = evaluate_tracks(tracks, Separator(model, "cpu", mode="reference"), out, Scoring(("SDR",)), overwrite=True)
    assert again.outcomes[0].status == "done"


def test_a_bad_track_is_named_and_the_rest_is_done(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    (musdb_root / "test" / "B - Two" / "bass.wav").write_bytes(b"not audio")
    run = evaluate_tracks(open_tracks(musdb_root, "test"), Separator(model, "cpu"), tmp_path / "out", Scoring(("SDR",)))
    assert [o.name for o in run.failures] == ["B - Two"]
    assert len(run.scores) == 2
    with pytest.raises(MetaTasNetError, match="B - Two"):
        evaluate_tracks(
            open_tracks(musdb_root, "test"),
            Separator(model, "cpu"),
            tmp_path / "strict",
            Scoring(("SDR",), strict=True),
        )


def test_a_silent_stem_is_reported_and_counts_no_frame(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    write_track(musdb_root / "test" / "D - Silent", 9, silent="bass")
    tracks = [t for t in open_tracks(musdb_root, "test") if t.name == "D - Silent"]
    run = evaluate_tracks(tracks, Separator(model, "cpu"), tmp_path / "out", Scoring(("SDR",)))
    assert "bass" in run.outcomes[0].warnings[0]
    assert len(run.scores[0].counted("drums", "SDR")) == 0


def test_tracks_scored_at_once_have_their_own_silent_stems_named(
    musdb_root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stem in (("D - Silent", "bass"), ("E - Silent", "drums")):
        write_track(musdb_root / "test" / name, 9, silent=stem)
    both = Barrier(2, timeout=60)

    def meeting(*args: Any, **settings: Any) -> BssScores:
        both.wait()
        return bss_eval(*args, **settings)

    monkeypatch.setattr(track, "bss_eval", meeting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracks = [t for t in open_tracks(musdb_root, "test") if "Silent" in t.name]
        run = evaluate_tracks(tracks, Separator(model, "cpu"), tmp_path / "out", Scoring(("SDR",)), workers=2)
    named = {o.name: "".join(o.warnings).partition(".")[0] for o in run.outcomes}
    assert named == {
        "D - Silent": "Silent from end to end: reference of bass",
        "E - Silent": "Silent from end to end: reference of drums",
    }


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
"""What torch raises on a CPU."""


@pytest.mark.parametrize(
    ("where", "raised", "advice"),
    [
        ("read", MemoryError(), "fewer tracks at once"),
        ("separate", torch.OutOfMemoryError("CUDA out of memory."), "fast mode"),
        ("score", CPU_FULL, "fewer tracks at once"),
    ],
)
def test_a_track_that_memory_does_not_hold_is_named_and_the_rest_is_done(
    where: str,
    raised: Exception,
    advice: str,
    musdb_root: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def full_once(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise raised
            return function(*args, **options)

        return called

    if where == "read":
        monkeypatch.setattr(tracks, "read_stems", full_once(read_stems))
    elif where == "separate":
        monkeypatch.setattr(Separator, "separate", full_once(Separator.separate))
    else:
        monkeypatch.setattr(track, "bss_eval", full_once(bss_eval))
    separator = Separator(model, "cpu", mode="reference")
    run = evaluate_tracks(open_tracks(musdb_root, "test")[:2], separator, tmp_path / "out", Scoring(("SDR",)))
    assert [o.name for o in run.failures] == ["A - One"]
    assert [o.name for o in run.scores] == ["B - Two"]
    assert (said := run.failures[0].error) is not None
    assert said.startswith("Memory does not suffice") and "A - One" in said and advice in said
    calls = 0
    with pytest.raises(OutOfMemoryError, match="A - One"):
        evaluate_tracks(
            open_tracks(musdb_root, "test")[:1], separator, tmp_path / "strict", Scoring(("SDR",), strict=True)
        )


def test_the_original_package_gives_the_same_scores(musdb_root: Path, model: Path, tmp_path: Path) -> None:
    original = museval_module("museval.metrics")
    tracks, separator = open_tracks(musdb_root, "test")[:1], Separator(model, "cpu")
    ours = evaluate_tracks(tracks, separator, tmp_path, Scoring(METRICS)).scores[0]
    track = tracks[0].read()
    separation = separator.separate(track.whole, track.rate)
    references, estimates = (
        np.stack([side[stem].T.double().numpy() for stem in ours.stems]) for side in (track.stems, separation)
    )
    frames = {"window": track.rate, "hop": track.rate, "framewise_filters": False, "bsseval_sources_version": False}
    theirs = original.bss_eval(references, estimates, compute_permutation=False, **frames)
    for metric, values in zip(METRICS, theirs, strict=False):
        for stem, by_frame in zip(ours.stems, values, strict=True):
            assert np.allclose(ours.targets[stem][metric], by_frame, atol=1e-5), (stem, metric)


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
        (["--musdb", "absent"], "There is no file or folder"),
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
    recording = golden("evaluate_track")
    mixture, *stems = decode_here()
    separation = Separator(recording.network(), "cpu", "reference", "float64", "reference").separate(mixture, 44100)
    true = {name: stem.T.numpy() for name, stem in zip(STEMS, stems, strict=True)}
    scores = evaluate_track(true, {k: v.T for k, v in separation.items()}, name="recorded")
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
