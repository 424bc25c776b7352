"""Check every backend in every precision on this machine, against plain PyTorch in float64.

The networks are small and of every kind. Weights and signals are computed by formula; no file is downloaded or read.
The rule for the allowed error is in :mod:`.measure`. For eager's own error, this rule uses the largest error of eager
on any signal of the same network and of the same kind, ordinary or degenerate. On degenerate signals (silence, a
constant, a click) the norms of any program divide one number near zero by another.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, Request, available_backends
from ..backends.reference import ReferenceBackend
from ..config import MetaTasNetConfig
from ..errors import MetaTasNetError
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from . import synthetic
from .cases import GRADIENTS, Outputs, Participants
from .measure import Errors, errors_of, limit
from .workloads import engine

__all__ = ["NETWORKS", "Result", "devices", "selftest", "signals"]

SMALL = MetaTasNetConfig(N=24, B=16, H=24, layers=3, stack=2, num_mels=12)

NETWORKS = {
    "generated": SMALL,
    "independent": dataclasses.replace(SMALL, independent_params=True),
    "residual bias": dataclasses.replace(SMALL, residual_bias=True),
    "other sizes": MetaTasNetConfig(
        N=40,
        L=16,
        W=8,
        B=24,
        H=16,
        filters=2,
        layers=2,
        stack=3,
        num_mels=7,
        stages_num=2,
        instruments=("violin", "viola", "cello"),
        added_instruments=1,
    ),
}

TRAINING = "a training step"

ORDINARY = ("music", "noise, 3 items", "shortest", "odd length", "one frame more")


@dataclass(frozen=True)
class Result:
    """The result of one network and signal on one backend, device and precision."""

    device: str
    backend: str
    precision: str
    network: str
    signal: str
    error: float
    """Relative L2 error of the output that is worst against its limit."""
    allowed: float
    eager: float
    """Eager PyTorch's error in the same precision."""
    output: str
    """The output that ``error`` belongs to; if the backend raised an error, the text of that error."""

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def devices() -> list[torch.device]:
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def signals(config: MetaTasNetConfig) -> dict[str, list[Tensor]]:
    """Return float32 mixtures (batch, 1, samples 2^s) for every stage, by name."""
    base = config.stage(0)
    shortest = max(-(-stage.shortest // stage.W) for stage in config.stages) * base.W
    length = shortest + 37 * base.W
    random = torch.Generator().manual_seed(8)

    def music(batch: int, samples: int) -> list[Tensor]:
        return [mix.float() for mix in synthetic.mixtures(synthetic.sources(config, batch, samples, seed=9))]

    def constant(value: float) -> list[Tensor]:
        return [torch.full((1, 1, length << s), value) for s in range(config.stages_num)]

    def noise(batch: int, samples: int) -> list[Tensor]:
        return [torch.randn(batch, 1, samples << s, generator=random) for s in range(config.stages_num)]

    click = constant(0.0)
    for s, x in enumerate(click):
        x[..., (length // 2) << s] = 1.0
    return {
        "music": music(2, length),
        "noise, 3 items": noise(3, length),
        "shortest": music(1, shortest),
        "odd length": music(1, length + base.W // 2 + 1),
        "one frame more": noise(1, shortest + base.W),
        "silence": constant(0.0),
        "constant": constant(0.5),
        "square wave": [x.sign() for x in music(1, length)],
        "click": click,
        "very quiet": [1e-4 * x for x in music(1, length)],
        "sound between silences": [torch.cat([0 * x, x, 0 * x], dim=-1) for x in music(1, length)],
    }


def selftest(
    on: Sequence[torch.device] | None = None,
    extra: dict[str, Backend] | None = None,
    networks: Sequence[str] = tuple(NETWORKS),
) -> Iterator[Result]:
    """Test every backend in every precision on every device.

    Args:
        on: devices; by default all devices of this machine.
        extra: more backends by name.
        networks: names in :data:`NETWORKS`.
    """
    names = [name for name, entry in available_backends().items() if entry.available and name != "reference"]
    for kind in networks:
        network = synthetic.network(NETWORKS[kind], seed=11)
        heard = signals(network.config)
        taught = _training_batch(network)
        expected: dict[str, Outputs] = {}
        for device in on or devices():
            participants = Participants(device, tuple(Precision), names, compiled=False, extra=extra or {})
            if not expected:
                expected, _ = _all(network, participants.backend("reference"), Precision.float64, heard, taught)
            there = copy.deepcopy(network).to(device)
            eager: dict[Precision, dict[str, Errors]] = {}
            for name, backend, precision in participants.serving(network.config, training=False):
                trains = backend.supports(Request(device, precision, True, network.config)) is None
                outputs, broken = _all(there, backend, precision, heard, taught if trains else None)
                errors = {signal: errors_of(found, expected[signal], precision) for signal, found in outputs.items()}
                eager.setdefault(precision, errors)
                yield from _check(str(device), name, precision, kind, errors, eager[precision], broken)


def _check(
    device: str,
    backend: str,
    precision: Precision,
    kind: str,
    errors: dict[str, Errors],
    eager: dict[str, Errors],
    broken: dict[str, str],
) -> Iterator[Result]:
    for signal, found in errors.items():
        alike = [other for other in eager if _kind(other) == _kind(signal)]
        own = {output: max(eager[other][output] for other in alike) for output in found}
        degenerate = _kind(signal) == "degenerate"
        limits = {output: limit(output, precision, own[output], degenerate) for output in found}
        worst = max(found, key=lambda output: found[output] / limits[output])
        figures = found[worst], limits[worst], own[worst]
        yield Result(device, backend, precision.value, kind, signal, *figures, broken.get(signal, worst))


def _kind(signal: str) -> str:
    return signal if signal == TRAINING else "ordinary" if signal in ORDINARY else "degenerate"


def _all(
    network: MultiTasNet,
    backend: Backend,
    precision: Precision,
    heard: dict[str, list[Tensor]],
    taught: tuple[list[Tensor], list[Tensor], Tensor] | None,
) -> tuple[dict[str, Outputs], dict[str, str]]:
    """Return the outputs by signal (empty if the backend raised an error), and the backend's errors by signal."""
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    ready = functools.cache(lambda: engine(network, backend, precision))
    jobs: dict[str, Callable[[], Outputs]] = {
        name: functools.partial(_separate, ready, [mix.to(network.device, dtype) for mix in mixes])
        for name, mixes in heard.items()
    }
    if taught:
        jobs[TRAINING] = functools.partial(_training_step, network, backend, precision, dtype, *taught)
    found: dict[str, Outputs] = {}
    broken: dict[str, str] = {}
    with _one_thread() if isinstance(backend, ReferenceBackend) else contextlib.nullcontext():
        for name, job in jobs.items():
            try:
                found[name] = job()
            except (RuntimeError, MetaTasNetError) as error:
                found[name] = {}
                broken[name] = f"{type(error).__name__}: {error}"
    return found, broken


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: layers as small as these take many times as long on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _separate(ready: Callable[[], Engine], mixes: list[Tensor]) -> Outputs:
    with torch.no_grad():
        estimates = ready().separate(mixes, range(len(mixes)))
    return {f"stage {s}": [estimate] for s, estimate in estimates.items()}


def _training_batch(network: MultiTasNet) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return mixtures (2, 1, T 2^s), sources (2, I, 1, T 2^s) and the mask (2, I, 1) of the non-silent sources; float32.

    A source is the network's output in float64 plus an equally loud other signal, which gives an SI-SDR near 0 dB, as
    in training. The output of an untrained network is almost orthogonal to any other source, and then the decibels
    depend on rounding in every precision.
    """
    config = network.config
    stems = synthetic.sources(config, 2, -(-2000 // config.W) * config.W, seed=10)
    mixes = synthetic.mixtures(stems)
    ready = engine(copy.deepcopy(network), ReferenceBackend(), Precision.float64)
    with torch.no_grad(), _one_thread():
        estimates = ready.separate(mixes, range(config.stages_num))
    sounds = torch.ones(2, len(config.instruments), 1, dtype=torch.float64)
    sounds[1, len(config.instruments) // 2] = 0
    near = [estimates[s] / _rms(estimates[s]) + stem / _rms(stem) for s, stem in enumerate(stems)]
    return [mix.float() for mix in mixes], [(x * sounds[..., None]).float() for x in near], sounds.float()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()


def _training_step(
    network: MultiTasNet,
    backend: Backend,
    precision: Precision,
    dtype: torch.dtype,
    mixes: list[Tensor],
    stems: list[Tensor],
    sounds: Tensor,
) -> Outputs:
    """Return loss, statistics and gradients of two items with one silent source."""
    config = network.config
    trained = copy.deepcopy(network).to(dtype)
    ready = engine(trained, backend, precision, training=True)
    there = functools.partial(torch.Tensor.to, device=network.device, dtype=dtype)
    loss, stats = ready.loss(
        [there(mix) for mix in mixes], [there(stem) for stem in stems], [there(sounds)] * config.stages_num
    )
    loss.backward()
    gradients = [p.grad for p in trained.parameters() if p.grad is not None]
    return {"loss and statistics": [loss.detach(), stats.detach()], GRADIENTS: gradients}
