"""Spools, deviations, gains and batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.errors import MetaTasNetError, OutOfMemoryError, OutputError
from metatasnet_fast.model.methods import RunningDeviation
from metatasnet_fast.separation.devices import BatchRunner
from metatasnet_fast.separation.outputs import NormalEquations, residual_shares
from metatasnet_fast.separation.recording import Budget, Spool

from .conftest import PointwiseEngine


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.sampled_from([None, 0, 100, 1000]),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_a_spool_gives_back_what_it_got(sizes: list[int], limit: int | None, start: int, count: int) -> None:
    blocks = [torch.randn(2, n) for n in sizes]
    whole = torch.cat([torch.empty(2, 0), *blocks], 1)
    spool = Spool(2, Budget(limit))
    for block in blocks:
        spool.append(block)
    padded = torch.cat([whole, torch.zeros(2, 600)], 1)
    assert torch.equal(spool.read(start, start + count), padded[:, start : start + count])
    assert torch.equal(torch.cat([torch.empty(2, 0), *spool.drain()], 1), whole)


def test_spools_share_one_budget_and_give_it_back() -> None:
    budget = Budget(80)
    first, second = Spool(1, budget), Spool(1, budget)
    first.append(torch.ones(1, 15))
    second.append(torch.ones(1, 10))
    assert first._file is None and second._file is not None
    first.close()
    assert budget.take(80)


def test_a_missing_temporary_folder_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match="TMPDIR"):
        Spool(1, Budget(0)).append(torch.ones(1, 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_the_deviation_of_blocks_is_that_of_the_whole(sizes: list[int], offset: float) -> None:
    blocks = [torch.randn(3, n) + offset for n in sizes]
    running = RunningDeviation(3)
    for block in blocks:
        running.add(block)
    whole = torch.cat(blocks, 1).double()
    expected = whole.std(-1) if whole.shape[1] > 1 else torch.zeros(3)
    torch.testing.assert_close(running.deviation(), expected.double(), rtol=1e-9, atol=1e-9)


def test_gains_from_blocks_are_least_squares_over_the_whole() -> None:
    stems = torch.randn(2, 4, 5000) * torch.tensor([1.0, 1e-3, 1e3, 1.0])[:, None]
    stems[:, 3] += 0.9 * stems[:, 0]
    mixture = torch.randn(2, 5000) + stems.sum(1) / 50
    equations = NormalEquations(2, 4)
    for first in range(0, 5000, 777):
        equations.add(stems[..., first : first + 777], mixture[:, first : first + 777])
    for channel in range(2):
        a, b = stems[channel].T.double().numpy(), mixture[channel].double().numpy()
        np.testing.assert_allclose(equations.solve()[channel], np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-9)


@pytest.mark.parametrize("case", ["equal stems", "silent stem", "all silent", "silent mixture", "one sample"])
def test_degenerate_stems_have_finite_gains(case: str) -> None:
    stems, mixture = torch.randn(1, 4, 300), torch.randn(1, 300)
    if case == "equal stems":
        stems[:, 1] = -2 * stems[:, 0]
    elif case == "silent stem":
        stems[:, 2] = 0
    elif case == "all silent":
        stems.zero_()
    elif case == "silent mixture":
        mixture.zero_()
    else:
        stems, mixture = stems[..., :1], mixture[:, :1]
    equations = NormalEquations(1, 4)
    equations.add(stems, mixture)
    gains = equations.solve()
    assert gains.isfinite().all()
    residual = mixture[0].double() - gains[0] @ stems[0].double()
    a, b = stems[0].T.double().numpy(), mixture[0].double().numpy()
    best = b - a @ np.linalg.lstsq(a, b, rcond=None)[0]
    np.testing.assert_allclose(residual.numpy(), best, atol=1e-9)
    if case == "silent stem":
        assert gains[0, 2] == 0
    if case in ("all silent", "silent mixture"):
        assert (gains == 0).all()


def test_a_network_that_gives_nan_is_an_error() -> None:
    equations = NormalEquations(1, 4)
    equations.add(torch.full((1, 4, 3), float("nan")), torch.ones(1, 3))
    with pytest.raises(MetaTasNetError, match="float32"):
        equations.solve()


def test_a_silent_stem_gets_nothing_of_the_residual() -> None:
    shares = residual_shares(torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert shares.tolist() == [[0.75, 0.25, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]


class FullEngine(PointwiseEngine):
    """Holds so many windows and no more."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.__dict__.update(most=most, error=error, sizes=[])

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        self.__dict__["sizes"].append(len(mixes[0]))
        if len(mixes[0]) > self.__dict__["most"]:
            raise self.__dict__["error"]
        return super().separate(mixes, wanted)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    engine, warnings = FullEngine(2, error), []
    windows = [[torch.full((1, 8 * 2**s), float(i)) for s in range(3)] for i in range(11)]
    runner = BatchRunner(8, warnings.append)
    estimates = list(runner.run(engine, iter(windows)))  # type: ignore[arg-type]
    assert engine.__dict__["sizes"] == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [round(float(e[3, 0]) / 0.4) for e in estimates] == list(range(11))
    assert runner.batch_size == 2 and len(warnings) == 2


def test_a_window_that_never_fits_is_an_error() -> None:
    engine = FullEngine(0, torch.OutOfMemoryError())
    windows = [[torch.zeros(1, 8 * 2**s) for s in range(3)]]
    with pytest.raises(OutOfMemoryError, match="single window"):
        list(BatchRunner(4, print).run(engine, iter(windows)))  # type: ignore[arg-type]


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    engine = FullEngine(0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(BatchRunner(4, print).run(engine, iter([[torch.zeros(1, 8)] * 3])))  # type: ignore[arg-type]
