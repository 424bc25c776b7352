"""The trainer's loss and gradients are those of the whole batch, whatever parts it is computed in."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metatasnet_fast.backends import Choice, Request, available_backends, get_backend
from metatasnet_fast.benchmark.synthetic import mixtures
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from metatasnet_fast.training.step import BatchGradients, GradientStep, Items
from tests.support import TINY, Golden, allowed, assert_parity, golden, recipe_state, relative_error

RECORDED = ["train_generated", "train_independent", "train_residual_bias"]
UNCUT = 1e9
"""A norm that no gradient exceeds."""

Gradients = dict[str, torch.Tensor]


def training_backends() -> list[str]:
    """Backends that can train a network on this machine's CPU."""
    request = Request(torch.device("cpu"), Precision.float32, True, TINY)
    return [
        name
        for name, found in available_backends().items()
        if found.available and get_backend(name).supports(request) is None
    ]


def recorded_items(recording: Golden, dtype: torch.dtype) -> Items:
    sources = recording.sources(dtype)
    sounds = (sources[0] != 0).any(-1).to(dtype)
    return Items(mixtures(sources), sources, [sounds] * len(sources))


def gradients_of(network: MultiTasNet) -> Gradients:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", training_backends())
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", RECORDED)
def test_loss_statistics_and_gradients_equal_the_authors(case: str, precision: str, backend: str) -> None:
    recording, dtype = golden(case), getattr(torch, precision)
    if get_backend(backend).supports(Request(torch.device("cpu"), Precision.parse(precision), True, recording.config)):
        pytest.skip(f"{backend} does not train in {precision}")
    network = recording.network(dtype)
    step = GradientStep(network, Choice(backend, Precision.parse(precision)), clip=UNCUT)
    found = step(recorded_items(recording, dtype), 1)
    assert_parity("loss", torch.tensor([found.loss]), recording["loss"], allowed(case, precision, "loss", times=10))
    stats = torch.tensor([found.stats], dtype=torch.float64)
    assert_parity("stats", stats, recording["stats"], allowed(case, precision, "stats", times=10))
    expected = recording.under("grad/")
    gradients = gradients_of(network)
    assert gradients.keys() == expected.keys()
    limit = allowed(case, precision, "grad_all", times=10)
    assert_parity("gradients", [gradients[name] for name in expected], list(expected.values()), limit)


def random_items(items: int, dtype: torch.dtype, samples: int = 640, stages: int = 3) -> Items:
    """Noise with some silent stems."""
    generator = torch.Generator().manual_seed(items)
    wide = [torch.randn(items, 4, 1, samples * 2**s, generator=generator, dtype=torch.float64) for s in range(stages)]
    sounds = torch.rand(items, 4, 1, generator=generator) > 0.25
    sounds[:, 0] = True
    sources = [(source * sounds[..., None]).to(dtype) for source in wide]
    return Items(mixtures(sources), sources, [sounds.to(dtype)] * stages)


def run(
    items: Items, config: MetaTasNetConfig = TINY, dtype: torch.dtype = torch.float64, **options: object
) -> tuple[BatchGradients, Gradients]:
    network = MultiTasNet(config)
    network.load_state_dict(recipe_state(config, 3))
    network.to(dtype)
    found = GradientStep(network, Choice("reference"), clip=UNCUT, **options)(items, 7)  # type: ignore[arg-type]
    return found, gradients_of(network)


def test_micro_batches_change_nothing() -> None:
    items = random_items(4, torch.float64)
    whole, expected = run(items)
    for size in (1, 2, 3):
        parts, gradients = run(items, micro_batch=size)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
        assert parts.stats == pytest.approx(whole.stats, rel=1e-11)
        assert gradients.keys() == expected.keys()
        assert relative_error(list(gradients.values()), list(expected.values())) < 1e-12
        assert max(relative_error(gradients[name], expected[name]) for name in expected) < 1e-9


def test_micro_batches_draw_the_same_dropout() -> None:
    config = dataclasses.replace(TINY, dropout=0.3)
    items = random_items(4, torch.float64)
    (whole, expected), (parts, gradients) = run(items, config), run(items, config, micro_batch=1)
    assert whole.loss != pytest.approx(run(items)[0].loss, rel=1e-6)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    assert relative_error(list(gradients.values()), list(expected.values())) < 1e-12


def test_recomputing_changes_no_bit() -> None:
    items = random_items(3, torch.float32)
    (plain, expected), (again, gradients) = (run(items, dtype=torch.float32, recompute=r) for r in (False, True))
    assert again == plain
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


@pytest.mark.parametrize("weights", [(0.0, 3.0, 0.05), (2.0, 0.0, 0.05), (2.0, 3.0, 0.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_terms_that_are_off_are_off_as_in_the_network(weights: tuple[float, ...], micro_batch: int | None) -> None:
    names = ("similarity_loss_weight", "dissimilarity_loss_weight", "reconstruction_loss_weight")
    config = dataclasses.replace(TINY, stages_num=1, **dict(zip(names, weights, strict=True)))
    items = random_items(3, torch.float64, stages=1)
    found, gradients = run(items, config, micro_batch=micro_batch)
    network = MultiTasNet(config)
    network.load_state_dict(recipe_state(config, 3))
    network.double()
    loss, stats = network([s.sum(1) for s in items.sources], items.sources, items.masks)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert found.stats == pytest.approx(stats[0].tolist(), rel=1e-10, abs=1e-15)
    expected = gradients_of(network)
    assert relative_error([gradients[name] for name in expected], list(expected.values())) < 1e-12


def test_gradients_are_cut_to_the_norm_and_the_norm_before_is_told() -> None:
    items = random_items(2, torch.float64)
    network = MultiTasNet(TINY).double()
    found = GradientStep(network, Choice("reference"), clip=0.5)(items, 1)
    norm = torch.stack([g.norm() for g in gradients_of(network).values()]).norm().item()
    assert found.norm > 0.5
    assert norm == pytest.approx(0.5, rel=1e-4)
