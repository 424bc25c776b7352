"""A folder holds the scores of one model, one choice of settings and one set of audio, or says why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast import Separator
from metatasnet_fast.evaluation import EvaluationError, Scoring
from metatasnet_fast.evaluation.runner import ScoringRun, evaluate_tracks
from metatasnet_fast.evaluation.tracks import open_tracks

from .conftest import write_track


@pytest.fixture
def separator(model: Path) -> Separator:
    return Separator(model, "cpu")


def evaluate(root: Path, separator: Separator, out: Path, tracks: int = 2, **options: Any) -> ScoringRun:
    return evaluate_tracks(open_tracks(root, "test")[:tracks], separator, out, Scoring(("SDR",)), **options)


def statuses(run: ScoringRun) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in run.outcomes}


def test_an_overwrite_that_fails_halfway_leaves_no_score_of_the_other_model(
    musdb_root: Path, separator: Separator, model: Path, tmp_path: Path
) -> None:
    out, bass = tmp_path / "out", musdb_root / "test" / "B - Two" / "bass.wav"
    evaluate(musdb_root, separator, out)
    sound = bass.read_bytes()
    bass.write_bytes(b"not audio")
    other = Separator(model, "cpu", mode="reference")
    assert statuses(evaluate(musdb_root, other, out, overwrite=True))["B - Two"] == "failed"
    assert not (out / "test" / "B - Two.json").exists()
    bass.write_bytes(sound)
    again = evaluate(musdb_root, other, out)
    assert statuses(again) == {"A - One": "kept", "B - Two": "done"}


def test_scores_that_an_overwrite_with_another_model_left_alone_are_not_taken_for_its_own(
    musdb_root: Path, separator: Separator, model: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", Separator(model, "cpu", mode="reference")
    evaluate(musdb_root, separator, out)
    evaluate(musdb_root, other, out, tracks=1, overwrite=True)
    with pytest.raises(EvaluationError, match="test/B - Two"):
        evaluate(musdb_root, other, out)


def test_an_overwrite_of_some_tracks_keeps_those_of_the_same_evaluation(
    musdb_root: Path, separator: Separator, tmp_path: Path
) -> None:
    evaluate(musdb_root, separator, tmp_path / "out")
    evaluate(musdb_root, separator, tmp_path / "out", tracks=1, overwrite=True)
    assert set(statuses(evaluate(musdb_root, separator, tmp_path / "out")).values()) == {"kept"}


def test_scores_of_other_audio_under_the_same_name_are_refused(
    musdb_root: Path, separator: Separator, tmp_path: Path
) -> None:
    evaluate(musdb_root, separator, tmp_path / "out")
    shutil.rmtree(musdb_root / "test" / "B - Two")
    write_track(musdb_root / "test" / "B - Two", 11)  # of the same length, too
    with pytest.raises(EvaluationError, match=r"other audio .*test/B - Two\).*overwrite"):
        evaluate(musdb_root, separator, tmp_path / "out")
    assert set(statuses(evaluate(musdb_root, separator, tmp_path / "out", overwrite=True)).values()) == {"done"}
    assert set(statuses(evaluate(musdb_root, separator, tmp_path / "out")).values()) == {"kept"}


def test_a_data_set_that_was_moved_keeps_its_scores(musdb_root: Path, separator: Separator, tmp_path: Path) -> None:
    evaluate(musdb_root, separator, tmp_path / "out")
    moved = shutil.copytree(musdb_root, tmp_path / "elsewhere")
    assert set(statuses(evaluate(moved, separator, tmp_path / "out")).values()) == {"kept"}


def test_a_track_that_failed_may_be_replaced(musdb_root: Path, separator: Separator, tmp_path: Path) -> None:
    (musdb_root / "test" / "B - Two" / "bass.wav").write_bytes(b"not audio")
    assert len(evaluate(musdb_root, separator, tmp_path / "out").failures) == 1
    shutil.rmtree(musdb_root / "test" / "B - Two")
    write_track(musdb_root / "test" / "B - Two", 11)
    assert statuses(evaluate(musdb_root, separator, tmp_path / "out"))["B - Two"] == "done"


@pytest.mark.parametrize("older", [True, False], ids=["of an older version", "missing"])
def test_scores_whose_audio_is_not_on_record_are_refused_until_overwritten(
    older: bool, musdb_root: Path, separator: Separator, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(musdb_root, separator, out, tracks=1)
    record = json.loads((out / "evaluation.json").read_text())
    (out / "evaluation.json").unlink()
    if older:
        record.pop("audio", None)
        (out / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(EvaluationError, match=r"no record.*test/A - One"):
        evaluate(musdb_root, separator, out, tracks=1)
    evaluate(musdb_root, separator, out, tracks=1, overwrite=True)
    assert statuses(evaluate(musdb_root, separator, out, tracks=1)) == {"A - One": "kept"}


@pytest.mark.parametrize("text", ["", "null", '{"audio": []}'])
def test_a_damaged_record_is_one_sentence_and_can_be_overwritten(
    text: str, musdb_root: Path, separator: Separator, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"evaluation\.json is damaged"):
        evaluate(musdb_root, separator, out, tracks=1)
    evaluate(musdb_root, separator, out, tracks=1, overwrite=True)
    assert statuses(evaluate(musdb_root, separator, out, tracks=1)) == {"A - One": "kept"}


def test_a_record_that_cannot_be_written_leaves_the_old_one_whole(
    musdb_root: Path, separator: Separator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(musdb_root, separator, out, tracks=1)
    before = (out / "evaluation.json").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(EvaluationError, match="no space left on the disk"):
            evaluate(musdb_root, separator, out, tracks=1, overwrite=True)
    assert (out / "evaluation.json").read_text() == before
    assert sorted(os.listdir(out)) == ["evaluation.json", "test"]
