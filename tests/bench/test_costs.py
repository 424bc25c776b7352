"""The arithmetic that is counted is the arithmetic that is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metatasnet_fast import MetaTasNetConfig
from metatasnet_fast.backends import get_backend
from metatasnet_fast.benchmark import roofline, synthetic
from metatasnet_fast.benchmark.suite import TINY
from metatasnet_fast.benchmark.workloads import engine
from metatasnet_fast.precision import Precision

FRAMES = 60

SECOND = 400
"""Latent frames of one."""


def test_authors_network_takes_18_gmac_a_second_as_written_and_16_folded() -> None:
    config = MetaTasNetConfig()
    assert roofline.inference(config, SECOND, folded=False).macs / 1e9 == pytest.approx(18.05, abs=0.005)
    assert roofline.inference(config, SECOND, folded=True).macs / 1e9 == pytest.approx(16.2, abs=0.05)


@pytest.mark.parametrize(
    ("stage", "encoder", "masks", "decoder"), [(0, 0.19, 2.45, 0.29), (1, 0.67, 2.79, 1.17), (2, 2.46, 3.35, 4.68)]
)
def test_gmac_a_second_of_every_job(stage: int, encoder: float, masks: float, decoder: float) -> None:
    config = MetaTasNetConfig().stage(stage)
    assert roofline.encoder(config, SECOND).macs / 1e9 == pytest.approx(encoder, abs=0.006)
    assert roofline.masking(config, SECOND).macs / 1e9 == pytest.approx(masks, abs=0.006)
    assert roofline.decoder(config, SECOND, 4).macs / 1e9 == pytest.approx(decoder, abs=0.006)


@pytest.mark.parametrize(("items", "instruments"), [(1, ("voice",)), (3, TINY.instruments), (2, tuple("abcdefg"))])
def test_count_equals_what_torch_counts(items: int, instruments: tuple[str, ...]) -> None:
    """As written except for the last block's residual, which our reference leaves out as well."""
    network = synthetic.network(dataclasses.replace(TINY, layers=3, stack=2, instruments=instruments))
    ready = engine(network, get_backend("reference"), Precision.float32)
    for stage, prepared in zip(network.config.stages, ready.prepared, strict=True):
        signal = torch.randn(items, 1, FRAMES * stage.W)
        latent = torch.randn(items, stage.N, FRAMES)
        partial = torch.randn(items, len(instruments), stage.N // 2, FRAMES) if stage.index else None
        backend = ready.backend
        assert counted(lambda: backend.encode(prepared, signal)) == roofline.encoder(stage, FRAMES, items).flops  # noqa: B023
        masks = roofline.masking(stage, FRAMES, items, folded=True)
        assert counted(lambda: backend.mask(prepared, latent, partial)) == masks.flops  # noqa: B023
        assert counted(lambda: backend.decode(prepared, latent)) == roofline.decoder(stage, FRAMES, items).flops  # noqa: B023


def counted(job: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        job()
    return int(counter.get_total_flops())


def test_twice_the_items_are_twice_the_arithmetic_but_the_same_weights() -> None:
    stage = MetaTasNetConfig().stage(1)
    one, two, three = (roofline.masking(stage, 100, items) for items in (1, 2, 3))
    assert two.macs == 2 * one.macs
    assert three.bytes - two.bytes == two.bytes - one.bytes < one.bytes


def test_half_the_storage_is_half_the_bytes_of_a_masking_network() -> None:
    stage = MetaTasNetConfig().stage(2)
    assert roofline.masking(stage, 100, itemsize=4).bytes == 2 * roofline.masking(stage, 100, itemsize=2).bytes
