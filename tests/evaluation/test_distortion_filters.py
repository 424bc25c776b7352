"""The normal equations of BSSEval, and what happens when they are singular."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metatasnet_fast.evaluation import filters
from metatasnet_fast.evaluation.bss_eval import Signals
from metatasnet_fast.evaluation.filters import Correlations, correlate, solve

Array = NDArray[np.float64]


def lagged_products(first: Array, second: Array, delays: int) -> Array:
    length = len(first)
    return np.array([np.dot(first[: length - lag], second[lag:]) for lag in range(delays)])


def test_correlations_are_the_lagged_products_across_all_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_BLOCK_FFT", 64)
    random = np.random.RandomState(1)
    references, estimates = random.standard_normal((2, 2, 501, 2))
    result = correlate(Signals(references, "references"), Signals(estimates, "estimates"), delays=7)
    channels = [references[source, :, channel] for source in range(2) for channel in range(2)]
    estimated = [estimates[source, :, channel] for source in range(2) for channel in range(2)]
    for a in range(4):
        for b in range(4):
            for found, second in ((result.references, channels[b]), (result.estimates, estimated[b])):
                np.testing.assert_allclose(found[a, b], lagged_products(channels[a], second, 7), atol=1e-10)


def test_filters_are_the_least_squares_solution_over_delayed_references() -> None:
    random = np.random.RandomState(2)
    references, estimates = random.standard_normal((2, 2, 300, 2))
    delays = 5
    found, method = solve(correlate(Signals(references, "references"), Signals(estimates, "estimates"), delays))
    columns = np.zeros((300 + delays - 1, 4, delays))
    target = np.zeros((300 + delays - 1, 4))
    for a in range(4):
        target[:300, a] = estimates[a // 2, :, a % 2]
        for delay in range(delays):
            columns[delay : delay + 300, a, delay] = references[a // 2, :, a % 2]
    expected = np.linalg.lstsq(columns.reshape(-1, 4 * delays), target, rcond=None)[0].reshape(4, delays, 4)
    assert method == "cholesky"
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_singular_matrix_gets_filters_that_are_small_and_right_where_they_are_determined() -> None:
    """Both channels are the same signal, so only the sum of their two filters is determined."""
    signal = np.random.RandomState(4).standard_normal((1, 500, 1))
    twice, estimate = np.concatenate([signal, signal], axis=2), np.concatenate([3 * signal, -signal], axis=2)
    found, method = solve(correlate(Signals(twice, "references"), Signals(estimate, "estimates"), 4))
    expected = np.zeros((4, 2))
    expected[0] = 3, -1
    assert method == "shifted cholesky"
    np.testing.assert_allclose(found.sum(dim=0), expected, atol=1e-12)
    assert found.abs().max() < 2


def test_a_matrix_that_is_not_a_correlation_is_solved_by_least_squares() -> None:
    lagged = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    found, method = solve(Correlations(lagged, torch.tensor([[[5.0, 4.0]]], dtype=torch.float64)))
    assert method == "lstsq"
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_a_channel_of_zeros_has_filters_of_zeros() -> None:
    random = np.random.RandomState(3)
    references, estimates = random.standard_normal((2, 2, 400, 2))
    references[1, :, 0] = 0
    found, method = solve(correlate(Signals(references, "references"), Signals(estimates, "estimates"), 6))
    assert method == "cholesky"
    assert torch.all(found[2] == 0)
