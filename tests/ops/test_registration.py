"""Every operator, also of backward, keeps its schema and has the shapes that it tells a compiler, as the network calls it.

How those that can be differentiated do it is tested with each of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from metatasnet_fast import MetaTasNetConfig, MultiTasNet
from metatasnet_fast.backends.cache import collect_parameters, prepare_all
from metatasnet_fast.backends.triton import TritonBackend
from metatasnet_fast.benchmark.synthetic import mixtures, sources
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.ops.operator import NAMESPACE
from metatasnet_fast.precision import Precision
from tests.ops.test_operations import sample_arguments

CONFIG = MetaTasNetConfig(
    stages_num=2, N=16, B=16, H=16, layers=2, stack=1, num_mels=8, filters=2, residual_bias=True,
    instruments=("violin", "viola", "cello"), added_instruments=1,
)  # fmt: skip


def operators() -> list[str]:
    """Names of all of this package's operators."""
    every = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return sorted(name for namespace, _, name in every if namespace == NAMESPACE)


class Calls(TorchDispatchMode):
    """Keeps the arguments of the first call of each of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == NAMESPACE:
            given = tree_map_only(torch.Tensor, torch.Tensor.detach, args)
            self.found.setdefault(function._schema.name.partition("::")[2], (function, given))
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    torch.manual_seed(0)
    network = MultiTasNet(CONFIG)
    stems = [stem.float() for stem in sources(CONFIG, 2, 1000, seed=0)]
    mixes, masks = mixtures(stems), [torch.ones(2, 3, 1)] * CONFIG.stages_num
    stages = [(CONFIG.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    with Calls() as calls:
        for precision in (Precision.float32, Precision.bfloat16):  # masks are not stored in two bytes
            with torch.no_grad():
                ready = Engine(CONFIG, TritonBackend(), precision, prepare_all(TritonBackend(), precision, stages))
                ready.separate(mixes, [1])
        ready = Engine(CONFIG, TritonBackend(), precision, prepare_all(TritonBackend(), precision, stages))
        ready.loss(mixes, stems, masks)[0].backward(retain_graph=True)
        ready.backend.encode(ready.prepared[0], mixes[0].requires_grad_()).sum().backward()
        for name in ("depthwise", "group_affine", "group_statistics"):  # which the network does not call by themselves
            found = getattr(torch.ops.metatasnet_fast, name)(*sample_arguments()[name])
            if name == "depthwise":
                found[0].sum().backward()
    return calls.found


@pytest.mark.parametrize("name", operators())
def test_every_operator_is_what_torch_expects(name: str, calls: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    torch.library.opcheck(*calls[name], test_utils=("test_schema", "test_faketensor"))
