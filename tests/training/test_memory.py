"""Memory that does not suffice is one sentence with a way out, and costs no step that was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast.errors import TrainingError
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.checkpoints import read_original
from metatasnet_fast.training import validation
from metatasnet_fast.training.optimizer import Ranger
from metatasnet_fast.training.settings import TrainingSettings
from metatasnet_fast.training.step import GradientStep
from tests.training.songs import write_cache
from tests.training.test_runs import content, go, same

MORE_THAN_THERE_IS = 2**58


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0)


def exhausted(*args: Any, **options: Any) -> None:
    torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)


def test_a_batch_that_does_not_fit_costs_no_step_that_was_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(cache, tmp_path / "whole", steps=5)
    real = GradientStep.__call__

    def fourth(self: GradientStep, items: Any, step: int, votes: Any = ()) -> Any:
        return exhausted() if step == 4 else real(self, items, step, votes)

    with monkeypatch.context() as patch:
        patch.setattr(GradientStep, "__call__", fourth)
        with pytest.raises(TrainingError) as raised:
            go(cache, tmp_path / "parts", steps=5)
    says = str(raised.value)
    assert says.startswith("Memory ran out in step 4: ") and says.endswith("last.pt is of step 3.")
    assert "--micro_batch 2 or --recompute" in says
    assert read_original(tmp_path / "parts" / "last.pt").steps == 3
    assert go(cache, tmp_path / "parts") is None
    assert same(content(tmp_path / "whole" / "last.pt"), content(tmp_path / "parts" / "last.pt"))


def test_a_step_that_was_half_taken_is_not_saved(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(cache, tmp_path / "run", steps=1)
    monkeypatch.setattr(Ranger, "step", exhausted)
    with pytest.raises(TrainingError, match=r"^Memory does not suffice .*--micro_batch 2 or --recompute"):
        go(cache, tmp_path / "run", steps=3)
    assert read_original(tmp_path / "run" / "last.pt").steps == 1


def test_memory_that_does_not_suffice_to_begin_is_said_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MultiTasNet, "compute_stats", exhausted)
    with pytest.raises(TrainingError, match=r"^Memory does not suffice .*--micro_batch 2 or --recompute"):
        go(cache, tmp_path / "run", steps=1)


def test_a_validation_that_does_not_fit_names_what_helps_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "score_track", exhausted)
    with pytest.raises(
        TrainingError, match=r"^Memory ran out .*validation at step 2: .*--validate_every 0; last.pt is"
    ):
        go(cache, tmp_path / "run", steps=3, validate_every=2)
    assert read_original(tmp_path / "run" / "last.pt").steps == 2


def test_other_errors_stay_what_they_are(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(GradientStep, "__call__", fail)
    with pytest.raises(RuntimeError, match="device-side") as raised:
        go(cache, tmp_path / "run", steps=1)
    assert not isinstance(raised.value, TrainingError)


@pytest.mark.parametrize(
    ("given", "processes", "says"),
    [
        ({}, 1, "--micro_batch 6 or --recompute"),
        ({}, 4, "--micro_batch 1 or --recompute"),
        ({"micro_batch": 3, "recompute": True}, 1, "--micro_batch 1"),
        ({"micro_batch": 1}, 1, "--recompute"),
        ({"micro_batch": 1, "recompute": True}, 1, "a shorter --time_length"),
        ({"batch_size": 2, "recompute": True}, 2, "a shorter --time_length"),
    ],
)
def test_the_advice_is_what_is_not_done_yet(given: dict[str, Any], processes: int, says: str) -> None:
    assert TrainingSettings(**given).lighter(processes) == says
