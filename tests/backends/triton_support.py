"""What the tests of the backend ``triton`` share: a network on it, and what PyTorch itself is asked to do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metatasnet_fast.backends.cache import collect_parameters, prepare_all
from metatasnet_fast.backends.registry import Backend
from metatasnet_fast.backends.triton import TritonBackend, mask_weights
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.ops import GroupNorm, blocks, group_norm, in_conv, mask_tail, pointwise
from metatasnet_fast.precision import Precision
from tests.ops.cases import recorded_weights
from tests.support import Golden, allowed, assert_parity

TRITON = TritonBackend()

LAYERS = ("conv", "group_norm", "prelu", "softmax", "upsample", "interpolate", "batch_norm", "stft", "fft")
"""Parts of names of PyTorch's operators that this backend has kernels for."""


def engine(network: Any, precision: str = "float32", backend: Backend = TRITON) -> Engine:
    """The network on a backend, whether or not that would serve it: on a CPU by the operations' reference arithmetic."""
    config: MetaTasNetConfig = network.config
    stages = [(config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    return Engine(config, backend, Precision(precision), prepare_all(backend, Precision(precision), stages))


class Operators(TorchDispatchMode):
    """Names of all operators that are called, the backward's included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def layers(self) -> set[str]:
        """Those of PyTorch's own that compute what a kernel of ours should."""
        own = {name for name in self.names if name.startswith("aten.")}
        return {name for name in own if any(part in name for part in LAYERS)}


def profiled(function: Callable[[], Any]) -> set[str]:
    """Names of PyTorch's layers that run at any depth, inside our operators, too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    names = {event.key for event in profile.key_averages()}
    return {name for name in names if name.startswith("aten::") and any(part in name for part in LAYERS)}


def batch(
    config: MetaTasNetConfig, items: int = 2, samples: int = 1000
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Mixtures, sources and masks of every stage, white noise."""
    generator = torch.Generator().manual_seed(1)
    stages = range(config.stages_num)
    sources = [torch.randn(items, 4, 1, samples * 2**s, generator=generator) for s in stages]
    return [s.sum(1) for s in sources], sources, [torch.ones(items, 4, 1) for _ in stages]


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in network.named_parameters()}


def recorded_network(recording: Golden, part: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """The recorded masking network by this backend's operations and weights, forward and backward; asserts parity."""
    precision, name = str(dtype).removeprefix("torch."), recording.name
    stage, parameters = recorded_weights(recording, part, "mask.", dtype, device)
    inputs = {"grad_x": recording[f"{part}/x"].to(device, dtype).requires_grad_()}
    if f"{part}/partial" in recording:
        inputs["grad_partial"] = recording[f"{part}/partial"].to(device, dtype).requires_grad_()
    x, v = (*(value.transpose(2, 3) for value in inputs.values()), None)[:2]
    w = mask_weights(stage, parameters)
    prelu_1, prelu_2, prelu_3, prelu_4 = w.slopes
    assert x is not None
    y, statistics = in_conv(x, v, w.in_conv, prelu_1, *w.norm_1, prelu_2)
    y = group_norm(y, prelu_2, GroupNorm(statistics, *w.norm_2))
    y, statistics = blocks(y, w.blocks, stage.dilations, prelu_3)
    m, last = pointwise(y, w.mask_output, norm=GroupNorm(statistics, *w.norm_3), slope=prelu_3, next_slope=prelu_4)
    assert last is not None
    ones = torch.ones_like(m[:, 0])
    y = mask_tail(m, ones, prelu_4, GroupNorm(last, *w.norm_4)).transpose(2, 3)
    y.backward(recording[f"{part}/grad_y"].to(device, dtype))
    assert_parity("y", y.cpu(), recording[f"{part}/y"], allowed(name, precision, f"{part}/y"))
    for key, value in inputs.items():
        assert_parity(key, value.grad.cpu(), recording[f"{part}/{key}"], allowed(name, precision, f"{part}/{key}"))
    expected = recording.under(f"{part}/grad/")
    limit = allowed(name, precision, f"{part}/grad (all parameters)")
    found: list[Any] = [parameters["mask." + k].grad.cpu() for k in expected]
    assert_parity("grad", found, list(expected.values()), limit)
    without = {k for k, p in parameters.items() if k.startswith("mask.") and p.grad is None}
    assert without == {"mask." + k for k in recording.under(f"{part}/state/") if k not in expected}
