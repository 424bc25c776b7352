"""What training keeps for backward, counted on tensors without data, so that the sizes can be the real ones."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from metatasnet_fast import MetaTasNetConfig, MultiTasNet
from metatasnet_fast.backends import Backend, get_backend
from tests.backends.triton_support import TRITON, batch, engine
from tests.support import TINY


def saved_bytes(network: Any, backend: Backend, precision: str, *data: list[Tensor]) -> int:
    """Bytes of all memory that a training step's forward leaves for backward, parameters and inputs not counted."""
    own = [*network.parameters(), *(value for values in data for value in values)]
    known = {value.untyped_storage()._cdata for value in own}
    kept: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss, _ = engine(network, precision, backend).loss(*data)
    assert loss.requires_grad
    return sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in known)


def counted(config: MetaTasNetConfig, items: int, samples: int, backend: Backend, precision: str) -> int:
    with FakeTensorMode():
        network = MultiTasNet(config)
        mixes = [torch.empty(items, 1, samples * 2**s) for s in range(3)]
        sources = [torch.empty(items, 4, 1, samples * 2**s) for s in range(3)]
        return saved_bytes(network, backend, precision, mixes, sources, [torch.empty(items, 4, 1)] * 3)


@pytest.mark.parametrize(("precision", "gigabytes"), [("float32", 24.2), ("bfloat16", 15.1)])
def test_at_the_authors_size_a_fraction_of_what_eager_keeps(precision: str, gigabytes: float) -> None:
    """12 items of 8 s, the authors' batch, of which plain PyTorch keeps 71.4 GB."""
    eager = counted(MetaTasNetConfig(), 12, 64000, get_backend("reference"), "float32")
    ours = counted(MetaTasNetConfig(), 12, 64000, TRITON, precision)
    logging.getLogger(__name__).info("%s: %.2f GB, eager float32 %.2f GB", precision, ours / 1e9, eager / 1e9)
    assert ours <= gigabytes * 1e9
    assert eager >= 71.3e9


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_tensors_without_data_keep_what_real_ones_keep(backend: str) -> None:
    torch.manual_seed(0)
    real = saved_bytes(MultiTasNet(TINY), get_backend(backend), "float32", *batch(TINY))
    assert counted(TINY, 2, 1000, get_backend(backend), "float32") == real
