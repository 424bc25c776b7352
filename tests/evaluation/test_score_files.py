"""Score files are museval's, medians are museval's, and no one can mistake excerpts for the published setting."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metatasnet_fast.evaluation import (
    METRICS,
    EvaluationError,
    Scoring,
    SilentSourceWarning,
    TrackScores,
    caveats,
    evaluate_track,
    load_scores,
    score_table,
    summarise,
)
from tests.museval_oracle import museval_module

STEMS = ("vocals", "drums", "bass", "other")
decibels = st.one_of(
    st.floats(-120, 400),
    st.floats(-1e-4, 1e-4),
    st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.000005, -0.000015]),
)


def random_track(name: str, frames: int, seed: int, stems: tuple[str, ...] = STEMS) -> TrackScores:
    random = np.random.RandomState(seed)
    targets = {stem: {metric: random.normal(5, 4, frames) for metric in METRICS} for stem in stems}
    for values in targets.values():
        for metric in METRICS:
            values[metric][random.rand(frames) < 0.2] = np.nan
    return TrackScores(name, targets)


def museval_store(track: TrackScores) -> Any:
    aggregate_module = museval_module("museval.aggregate")
    store = aggregate_module.TrackStore(win=track.window, hop=track.hop, track_name=track.name)
    for stem, values in track.targets.items():
        store.add_target(stem, {metric: values[metric].tolist() for metric in METRICS})
    return store


def music(samples: int, stems: tuple[str, ...] = STEMS, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.RandomState(seed)
    references = {stem: random.standard_normal((samples, 2)) for stem in stems}
    leaked = 0.1 * sum(references.values())
    estimates = {
        stem: 0.8 * audio + leaked + 0.1 * random.standard_normal(audio.shape) for stem, audio in references.items()
    }
    return references, estimates


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(decibels, decibels, decibels, decibels), max_size=5),
    st.text(min_size=1),
    st.sampled_from([0.5, 1.0, 1]),
)
def test_the_text_is_musevals_byte_for_byte(rows: list[tuple[float, ...]], stem: str, hop: float) -> None:
    values: dict[str, NDArray[np.float64]] = {
        metric: np.array([row[index] for row in rows]) for index, metric in enumerate(METRICS)
    }
    track = TrackScores("track", {stem: values, "other": values}, window=2.0, hop=hop)
    assert track.json() == museval_store(track).json


def test_a_track_without_stems_is_musevals_empty_file() -> None:
    track = TrackScores("track", {})
    assert track.json() == museval_store(track).json


def test_files_satisfy_musevals_schema_and_survive_a_round_trip(tmp_path: Path) -> None:
    museval = museval_module()
    jsonschema = pytest.importorskip("jsonschema")
    simplejson = pytest.importorskip("simplejson")
    track = random_track("Möbius & Söhne - Ünder", frames=7, seed=1)
    path = track.write(tmp_path)
    assert path == tmp_path / "test" / "Möbius & Söhne - Ünder.json"
    schema = simplejson.loads((Path(museval.__path__[0]) / "musdb.schema.json").read_text())
    jsonschema.validate(simplejson.loads(path.read_text(), allow_nan=True), schema)
    again = TrackScores.read(path)
    assert again.json() == path.read_text()
    assert (again.name, again.window, again.hop) == (track.name, 1.0, 1.0)
    assert os.listdir(path.parent) == [path.name]


def test_medians_are_those_of_musevals_eval_store(tmp_path: Path) -> None:
    aggregate_module = museval_module("museval.aggregate")
    for index, frames in enumerate((6, 7, 4, 12)):
        random_track(f"track {index}", frames, seed=index).write(tmp_path)
    void = {stem: {metric: np.full(3, np.nan) for metric in METRICS} for stem in STEMS}
    TrackScores("void", void).write(tmp_path / "test", subset="deeper")
    store = aggregate_module.EvalStore()
    store.add_eval_dir(tmp_path)
    expected = store.agg_frames_tracks_scores()
    ours = summarise(load_scores(tmp_path))
    for stem in STEMS:
        assert ours[stem]["SDR"].tracks == 4
        assert ours[stem]["SDR"].frames == 6 + 7 + 4 + 12 + 3
        for metric in METRICS:
            assert ours[stem][metric].median == expected[stem][metric]


def test_sdr_alone_makes_a_file_that_museval_reads(tmp_path: Path) -> None:
    aggregate_module = museval_module("museval.aggregate")
    references, estimates = music(4000)
    track = evaluate_track(references, estimates, name="track", sample_rate=1000, scoring=Scoring(("SDR",)))
    track.write(tmp_path)
    store = aggregate_module.EvalStore()
    store.add_eval_dir(tmp_path)
    scores = store.agg_frames_tracks_scores()
    assert scores["bass"]["SDR"] == track.value("bass", "SDR")
    assert np.isnan(scores["bass"]["SAR"])


@pytest.mark.parametrize(
    "stems", [("bass", "vocals"), ("bass", "vocals", "accompaniment"), ("accompaniment", "vocals")]
)
def test_a_track_is_scored_and_written_as_musevals_eval_mus_track_does(stems: tuple[str, ...]) -> None:
    museval = museval_module()
    references, estimates = music(5500)
    references["bass"][1000:2300] = 0
    references["accompaniment"] = references["drums"] + references["bass"] + references["other"]
    estimates["accompaniment"] = 0.9 * references["accompaniment"] + estimates["vocals"] / 9
    chosen = {stem: estimates[stem] for stem in stems}
    chosen["vocals"] = chosen["vocals"][:5200]
    musdb_order = OrderedDict((stem, SimpleNamespace(audio=references[stem])) for stem in (*STEMS, "accompaniment"))
    padded = {**chosen, "vocals": np.pad(chosen["vocals"], ((0, 300), (0, 0)))}
    store = museval.eval_mus_track(
        SimpleNamespace(targets=musdb_order, name="track", rate=1000.0, subset="test"), padded
    )
    assert evaluate_track(references, chosen, name="track", sample_rate=1000.0).json() == store.json


def test_tensors_are_scored_like_arrays() -> None:
    references, estimates = music(3000)
    expected = evaluate_track(references, estimates, name="track", sample_rate=1000, scoring=Scoring(("SDR",)))
    tensors = [{stem: torch.from_numpy(audio) for stem, audio in stems.items()} for stems in (references, estimates)]
    tensors[1]["bass"] = torch.cat([tensors[1]["bass"], torch.ones(50, 2, dtype=torch.float64)])
    assert evaluate_track(*tensors, name="track", sample_rate=1000, scoring=Scoring(("SDR",))).json() == expected.json()


def test_a_silent_stem_is_named() -> None:
    references, estimates = music(3000)
    estimates["bass"][:] = 0
    with pytest.warns(SilentSourceWarning, match="estimate of bass"):
        track = evaluate_track(references, estimates, name="track", sample_rate=1000)
    assert "Silent from end to end: estimate of bass" in track.notes[0]
    assert len(track.counted("drums", "SDR")) == 0
    assert any("Without a single frame" in sentence and "track" in sentence for sentence in caveats([track]))


def test_perfect_estimates_are_not_called_silent() -> None:
    references, _ = music(3000)
    track = evaluate_track(references, references, name="track", sample_rate=1000)
    assert not any("silent from end to end" in note.lower() for note in track.notes)
    assert any("equals its true stem" in sentence for sentence in caveats([track]))


def test_estimates_without_a_reference_are_errors() -> None:
    references, estimates = music(3000)
    with pytest.raises(EvaluationError, match="no reference for piano"):
        evaluate_track(references, {**estimates, "piano": estimates["bass"]}, name="track")
    with pytest.raises(EvaluationError, match="no estimated stem"):
        evaluate_track(references, {}, name="track")


def test_a_stem_alone_has_the_sdr_that_it_has_among_others() -> None:
    references, estimates = music(3000)
    together = evaluate_track(references, estimates, name="track", sample_rate=1000)
    alone = evaluate_track(references, {"bass": estimates["bass"]}, name="track", sample_rate=1000)
    assert np.array_equal(alone.targets["bass"]["SDR"], together.targets["bass"]["SDR"])
    assert np.isfinite(alone.targets["bass"]["SAR"]).all()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"targets": [{"name": "bass", "frames": [{"time": 0}]}]}', "null"])
def test_a_file_that_is_not_scores_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "broken.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"broken\.json"):
        load_scores(tmp_path)


def test_an_empty_folder_and_an_impossible_name_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="No scores"):
        load_scores(tmp_path)
    with pytest.raises(EvaluationError, match="slashes"):
        TrackScores("a/b", {}).write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be written"):
        TrackScores("a", {}).write(tmp_path / "file")


def test_a_file_of_scores_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    path = random_track("track", frames=2, seed=0).write(tmp_path)
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EvaluationError, match="no space left on the disk"):
        random_track("track", frames=2, seed=0).write(tmp_path)
    assert os.listdir(tmp_path / "test") == []


def test_excerpts_are_loudly_not_comparable() -> None:
    table = score_table([random_track(str(index), frames=6, seed=index) for index in range(50)], "excerpts")
    assert "NOT COMPARABLE WITH THE PUBLISHED ROWS: these are excerpts (half of them of 6 seconds" in table
    assert table.index("PUBLISHED (not measured here)") < table.index("MEASURED HERE: excerpts")
    assert next(line.split()[1:] for line in table.splitlines() if line.startswith("  Meta-TasNet")) == [
        "5.91",
        "5.58",
        "4.19",
        "6.40",
        "5.52",
    ]


def test_a_part_of_the_test_set_is_not_comparable_and_all_of_it_is() -> None:
    tracks = [random_track(str(index), frames=200, seed=index) for index in range(50)]
    assert "49 tracks were scored" in caveats(tracks[:49])[0]
    assert caveats(tracks) == []
    assert "NOT COMPARABLE" not in score_table(tracks)


def test_the_table_holds_the_medians() -> None:
    tracks = [random_track(str(index), frames=9, seed=index) for index in range(3)]
    medians = summarise(tracks)
    values = [medians[stem]["SIR"].median for stem in ("drums", "bass", "other", "vocals")]
    row = next(line for line in score_table(tracks).splitlines() if line.startswith("  SIR"))
    assert row.split() == ["SIR", *(f"{value:.2f}" for value in [*values, np.mean(values)])]


def test_an_accompaniment_changes_the_scenario_and_is_said_to() -> None:
    track = random_track("track", 200, 0, stems=(*STEMS, "accompaniment"))
    assert any("against the accompaniment" in sentence for sentence in caveats([track]))
    assert "accompaniment" in score_table([track])


def test_other_windows_are_not_comparable() -> None:
    track = random_track("track", 200, 0)
    assert any("one second long" in sentence for sentence in caveats([TrackScores("t", track.targets, window=2.0)]))


def test_boxplots_come_out_as_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from metatasnet_fast.evaluation import plot_scores

    tracks = [random_track(str(index), frames=5, seed=index) for index in range(12)]
    void = {metric: np.full(5, np.nan) for metric in METRICS}
    tracks.append(TrackScores("void", {stem: void for stem in STEMS}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = plot_scores(tracks, tmp_path / "scores.png", title="random numbers")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(EvaluationError, match="nothing to plot"):
        plot_scores([], path)
    with pytest.raises(EvaluationError, match="cannot be written"):
        plot_scores(tracks, tmp_path / "scores.nonsense")
