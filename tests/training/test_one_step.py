"""There is one training step: the command, its parts and the network's forward run the backend's losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from metatasnet_fast.backends import get_backend
from metatasnet_fast.cli.main import main
from tests.training.songs import SMALL, write_cache


@pytest.mark.parametrize(
    "parts", [(), ("--micro_batch", "2"), ("--recompute",)], ids=["whole", "micro-batches", "twice"]
)
def test_training_runs_the_losses_of_the_backend(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend("reference")
    seen: list[int] = []

    def spy(estimate: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(estimate))
        return type(backend).stage_loss(backend, estimate, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "stage_loss", spy)
    cache = write_cache(tmp_path / "cache", seconds=1.0)
    flags = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    command = ["train", str(cache), "-o", str(tmp_path / "run"), "--backend", "reference", "--steps", "2", *flags]
    assert main([*command, *parts]) == 0
    items, stages, steps = SMALL["batch_size"], SMALL["stages_num"], 2
    assert sum(seen) == items * stages * steps
    assert torch.is_grad_enabled()
