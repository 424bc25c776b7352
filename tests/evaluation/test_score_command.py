"""Stems of any separator, in any layout, are found, paired, scored and compared."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metatasnet_fast.cli.main import main
from metatasnet_fast.evaluation import (
    BssScores,
    EvaluationError,
    Scoring,
    ScoringRun,
    TrackScores,
    compare,
    evaluate_track,
    latex_table,
    load_scores,
    score,
    score_rows,
    summarise,
)
from metatasnet_fast.evaluation.tracks import open_tracks, pair_tracks

RATE = 8000
soundfile: Any = pytest.importorskip("soundfile")
Stems = dict[str, NDArray[np.float64]]


def stems(*names: str, seed: int = 0, channels: int = 2) -> Stems:
    rng = np.random.default_rng(seed)
    return {name: 0.1 * rng.standard_normal((3 * RATE, channels)) for name in names}


def estimates_of(references: Stems, noise: float = 0.02) -> Stems:
    rng = np.random.default_rng(1)
    return {name: x + noise * rng.standard_normal(x.shape) for name, x in references.items()}


def write(folder: Path, signals: Mapping[str, NDArray[np.float64]], rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in signals.items():
        soundfile.write(folder / f"{name}.wav", audio, rate, subtype="FLOAT")
    return folder


@pytest.fixture
def two_tracks(tmp_path: Path) -> tuple[Path, Path]:
    for seed, track in enumerate(("One", "Two")):
        references = stems("violin", "viola", "cello", seed=seed)
        write(tmp_path / "true" / track, references)
        write(tmp_path / "found" / "model" / f"{track.lower()}.stem", estimates_of(references))
    return tmp_path / "true", tmp_path / "found"


def test_trees_of_other_layouts_and_stems_of_any_names_are_scored(
    two_tracks: tuple[Path, Path], tmp_path: Path
) -> None:
    run = score(*two_tracks, out=tmp_path / "out", workers=2)
    assert [outcome.status for outcome in run.outcomes] == ["done", "done"]
    assert {track.name: track.stems for track in run.scores} == dict.fromkeys(
        ("One", "Two"), ["cello", "viola", "violin"]
    )
    track = next(track for track in run.scores if track.name == "One")
    true = stems("violin", "viola", "cello")
    order = sorted(true)
    expected = evaluate_track(
        {name: true[name].astype(np.float32) for name in order},
        {name: estimates_of(true)[name].astype(np.float32) for name in order},
        name="One",
        sample_rate=RATE,
    )
    assert np.array_equal(track.targets["viola"]["SAR"], expected.targets["viola"]["SAR"])
    assert [track.value("viola", "uSDR") for track in load_scores(tmp_path / "out")] == [
        track.value("viola", "uSDR") for track in sorted(run.scores, key=lambda track: track.name)
    ]


def test_scores_of_the_same_audio_are_kept_and_of_other_audio_refused(
    two_tracks: tuple[Path, Path], tmp_path: Path
) -> None:
    references, estimates = two_tracks
    score(references, estimates, out=tmp_path / "out", scoring=Scoring(("SDR",)))
    again = score(references, estimates, out=tmp_path / "out", scoring=Scoring(("SDR",)))
    assert [outcome.status for outcome in again.outcomes] == ["kept", "kept"]
    write(estimates / "model" / "two.stem", stems("violin", "viola", "cello", seed=5))
    with pytest.raises(EvaluationError, match="other audio"):
        score(references, estimates, out=tmp_path / "out", scoring=Scoring(("SDR",)))
    with pytest.raises(EvaluationError, match="metrics differ"):
        score(references, estimates, out=tmp_path / "out")


def test_one_file_is_scored_against_one_file(tmp_path: Path) -> None:
    references = stems("song")
    true = write(tmp_path / "a", references) / "song.wav"
    found = write(tmp_path / "b", {"whatever": references["song"]}) / "whatever.wav"
    run = score(true, found, scoring=Scoring(("SDR", "uSDR", "fullness")))
    assert run.scores[0].value("song", "fullness") == 100
    assert run.scores[0].whole["song"]["uSDR"] == np.inf


def test_the_accompaniment_is_everything_but_the_vocals(tmp_path: Path) -> None:
    references = stems("vocals", "drums", "bass")
    rest = references["drums"] + references["bass"]
    true = write(tmp_path / "true" / "t", references)
    found = write(tmp_path / "found" / "t", {"vocals": references["vocals"] * 0.5, "no_vocals": rest * 0.5})
    run = score(true, found, scoring=Scoring(("uSDR",)))
    assert run.scores[0].value("accompaniment", "uSDR") == pytest.approx(20 * np.log10(2), abs=1e-4)


def test_the_mixture_of_a_track_is_no_stem_and_is_what_improvements_are_measured_from(tmp_path: Path) -> None:
    references = stems("a", "b")
    mixture = references["a"] + 2 * references["b"]
    true = write(tmp_path / "true" / "t", {**references, "mixture": mixture})
    found = write(tmp_path / "found" / "t", {"a": mixture, "mixture": mixture})
    run = score(true, found, scoring=Scoring(("SI-SDRi",)))
    assert run.scores[0].stems == ["a"]
    assert run.scores[0].value("a", "SI-SDRi") == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [("rate", "16000 Hz, the references 8000"), ("channels", "1 channels"), ("damaged", "cannot be decoded")],
)
def test_a_track_that_cannot_be_compared_is_named_and_the_others_are_done(
    change: str, said: str, two_tracks: tuple[Path, Path]
) -> None:
    references, estimates = two_tracks
    folder = estimates / "model" / "two.stem"
    if change == "damaged":
        (folder / "viola.wav").write_bytes(b"RIFF")
    else:
        channels = 1 if change == "channels" else 2
        write(folder, stems("violin", "viola", "cello", channels=channels), 16000 if change == "rate" else RATE)
    run = score(references, estimates, scoring=Scoring(("SDR",)))
    assert [outcome.name for outcome in run.failures] == ["Two"]
    assert said in str(run.failures[0].error)
    assert [track.name for track in run.scores] == ["One"]
    with pytest.raises(EvaluationError, match=said):
        score(references, estimates, scoring=Scoring(("SDR",), strict=True))


def test_tracks_without_estimates_are_failures_and_tracks_without_references_are_left_out(
    two_tracks: tuple[Path, Path],
) -> None:
    references, estimates = two_tracks
    write(references / "Three", stems("violin"))
    write(references / "Four", stems("violin"))
    write(estimates / "model" / "four", stems("harp"))
    write(estimates / "model" / "five", stems("violin"))
    run = score(references, estimates, scoring=Scoring(("SDR",)))
    assert {outcome.name: outcome.status for outcome in run.outcomes} == {
        "One": "done", "Two": "done", "Three": "failed", "Four": "failed"
    }  # fmt: skip
    assert "harp" in next(str(outcome.error) for outcome in run.failures if outcome.name == "Four")


def test_folders_of_one_name_in_several_places_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write(tmp_path / place / "song", stems("x"))
    names = [track.name for track in open_tracks(tmp_path)]
    assert names == ["a - song", "b - song"]
    pairs, missing = pair_tracks(open_tracks(tmp_path), open_tracks(tmp_path))
    assert [pair.name for pair in pairs] == names and not missing


def test_two_files_of_one_stem_are_named(tmp_path: Path) -> None:
    for name in ("bass.flac", "bass.wav"):
        soundfile.write(tmp_path / name, np.zeros((8, 2)), RATE)
    with pytest.raises(EvaluationError, match=r"bass\.flac and bass\.wav would be one stem"):
        open_tracks(tmp_path)


@pytest.mark.parametrize("path", ["absent", "empty"])
def test_a_place_without_tracks_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=path):
        open_tracks(tmp_path / path)


def test_the_command_prints_a_table_and_writes_all_numbers(
    two_tracks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, latex = tmp_path / "out", tmp_path / "table.tex"
    argv = ["score", *map(str, two_tracks), "-o", str(out), "--table", str(latex), "--metrics", "sdr,usdr"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "violin" in printed and "PUBLISHED" not in printed
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"SDR", "uSDR"} and len(rows) == 2 * 3 * 2
    assert r"\begin{tabular}" in latex.read_text()
    assert main([*argv, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["kept", "kept"]
    assert isinstance(lines[0]["scores"]["viola"]["uSDR"], float)


def test_scores_are_computed_on_the_device_that_is_asked_for(
    two_tracks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[str] = set()

    def stand_in(references: Any, estimates: Any, **options: Any) -> BssScores:
        found.update(signal.device.type for side in (references, estimates) for signal in side)
        return BssScores({})

    monkeypatch.setattr("metatasnet_fast.evaluation.track.bss_eval", stand_in)
    score(*two_tracks, Scoring(("SDR",), device="meta"))  # torch's device without memory stands for a GPU
    assert found == {"meta"}


def test_a_gpu_is_chosen_where_there_is_one_and_refused_where_there_is_none(
    two_tracks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    argv = ["score", *map(str, two_tracks), "-o", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("metatasnet_fast.evaluation.Scoring", lambda *settings: asked.append(settings[-1]))
        patch.setattr("metatasnet_fast.evaluation.score", lambda *_, **options: ScoringRun())
        for there in (True, False):
            patch.setattr(torch.cuda, "is_available", lambda there=there: there)
            assert main(argv) == 0
    assert asked == ["cuda", "cpu"]
    assert main([*argv, "--device", "gpu"]) == 2
    assert "The device gpu cannot be used" in capsys.readouterr().err


def test_a_page_shows_each_estimate_beside_its_reference_and_scores(
    two_tracks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["score", *map(str, two_tracks), "-o", str(tmp_path / "out"), "--metrics", "SDR,uSDR"]
    assert main([*argv, "--page-files", "--json"]) == 0
    line, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    page = tmp_path / "out" / "test" / f"{line['name']}.html"
    assert line["page"] == str(page) and not line["warnings"]
    text = page.read_text("utf-8")
    assert re.findall('data-track="(.*?)"', text) == ["recording", "cello", "viola", "violin"]
    assert text.count('data-do="reference"') == 3
    assert f"<dt>uSDR</dt><dd>{line['scores']['viola']['uSDR']:.2f}</dd>" in text
    assert len(list((page.parent / f"{page.stem}-sounds").iterdir())) == 1 + 2 * 3
    page.unlink()
    assert main([*argv, "--page"]) == 0 and not page.exists()  # kept: nothing is read again
    assert main([*argv, "--page", "--overwrite"]) == 0 and page.stat().st_size > len(text)


def test_a_page_that_cannot_be_written_costs_no_scores(two_tracks: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "test" / "One.html").mkdir(parents=True)
    run = score(*two_tracks, out=tmp_path / "out", scoring=Scoring(["SDR"]), page="file")
    one, two = sorted(run.outcomes, key=lambda outcome: outcome.name)
    assert (one.status, two.status) == ("done", "done")
    assert one.page is None and "no page to listen to" in one.warnings[0] and two.page is not None
    for wrong, out in (("file", None), ("paper", tmp_path / "other")):
        with pytest.raises(EvaluationError, match="A page is one of file, folder"):
            score(*two_tracks, out=out, page=wrong)


def test_parquet_and_pandas_hold_the_same_rows(two_tracks: tuple[Path, Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "scores.parquet"
    argv = ["score", *map(str, two_tracks), "-o", str(tmp_path / "out"), "--metrics", "SDR", "--table", str(table)]
    assert main(argv) == 0
    assert parquet.read_table(table).to_pylist() == score_rows(load_scores(tmp_path / "out"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["score", "absent", "absent"], "There is no file or folder absent"),
        (["score", "", "absent"], "The path is empty"),
        (["score", "one"], "Name REFERENCES and ESTIMATES"),
        (["score", "compare", "absent", "absent"], "No scores in absent"),
    ],
)
def test_a_wrong_command_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def scores_of(values: Mapping[str, float]) -> list[TrackScores]:
    return [TrackScores(name, {"bass": {"SDR": np.array([value])}}) for name, value in values.items()]


def test_two_sets_of_scores_are_compared_on_the_tracks_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = scores_of({f"t{i}": float(i) for i in range(8)} | {"only here": 9.0})
    second = scores_of({f"t{i}": i + 1.0 + 0.1 * i for i in range(8)})
    for name, tracks in (("first", first), ("second", second)):
        for track in tracks:
            track.write(tmp_path / name)
    (result,) = compare(first, second)
    assert (result.tracks, result.first, result.second) == (8, 3.5, pytest.approx(4.85))
    assert result.difference == pytest.approx(1.35)
    assert result.interval[0] < 1.35 < result.interval[1]
    assert result.p == 2 / 2**8  # all differences have one sign
    assert result.extremes[0] == ("t7", pytest.approx(1.7))
    assert main(["score", "compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    assert "t7 +1.70" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="in common"):
        compare(first[:1], second[1:])


def test_the_paired_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    for count in (9, 40):
        differences = rng.standard_normal(count) + 0.3
        first = scores_of({str(i): 0.0 for i in range(count)})
        second = scores_of({str(i): round(float(x), 5) for i, x in enumerate(differences)})
        expected = stats.permutation_test(
            (np.round(differences, 5),), np.mean, permutation_type="samples", n_resamples=20_000, rng=1
        )
        assert compare(first, second)[0].p == pytest.approx(expected.pvalue, abs=0.02)


def test_intervals_are_those_of_a_bootstrap_over_tracks() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.round(np.random.default_rng(4).standard_normal(30), 5)
    summary = summarise(scores_of({str(i): float(x) for i, x in enumerate(values)}))["bass"]["SDR"]
    for statistic, found in ((np.median, summary.median_interval), (np.mean, summary.mean_interval)):
        expected = stats.bootstrap((values,), statistic, method="percentile", n_resamples=20_000, rng=2)
        assert np.allclose(found, expected.confidence_interval, atol=0.05)


def test_a_single_track_has_no_interval_and_no_nan_in_its_table() -> None:
    summary = summarise(scores_of({"t": 1.0}))["bass"]["SDR"]
    assert (summary.median, summary.mean, summary.tracks) == (1.0, 1.0, 1)
    assert np.isnan(summary.mean_interval).all()
    assert "nan" not in latex_table(scores_of({"t": 1.0})).lower()
