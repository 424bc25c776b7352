"""Compile the Triton kernels of a network before its first use: in parallel, into Triton's cache, with or without a GPU.

The launches of the network are recorded on tensors without data, and specialised as they are at run time. A few short
inputs (whole frames, and an odd number of samples) need the same programs as inputs of any length and batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch

from ..backends.triton import TritonBackend
from ..backends.watch import collect_parameters
from ..config import MetaTasNetConfig
from ..precision import Precision
from .engine import Engine
from .network import MultiTasNet

if TYPE_CHECKING:
    from ..kernels.recording import Launch

__all__ = ["Recorded", "precompile", "programs", "record"]


@dataclass(frozen=True)
class Recorded:
    """A network's launches and calls of torch's operators, in order: first to prepare the weights, then to run (see
    :mod:`metatasnet_fast.kernels.recording`)."""

    preparing: list[Any]
    running: list[Any]


def record(
    config: MetaTasNetConfig, precision: Precision, capability: int, items: int, samples: int, training: bool
) -> Recorded:
    """Record preparing the weights of a network and running it on mixtures (items, 1, samples 2^s).

    Args:
        capability: compute capability of the GPU as a whole number: 90 for sm_90.
        training: record a training step without the optimiser, not a separation with only the last stage's decoder.
    """
    from ..kernels.log_power import basis
    from ..kernels.recording import Recorder

    for index in range(config.stages_num):
        basis(config.stage(index).n_fft, torch.device("meta"))  # made once in a process, so it belongs to no run
    with torch.device("meta"):
        network = MultiTasNet(config)
        mixes = [torch.empty(items, 1, samples * 2**s) for s in range(config.stages_num)]
        sources = [torch.empty(items, len(config.instruments), 1, mix.shape[-1]) for mix in mixes]
        masks = [torch.empty(items, len(config.instruments), 1) for _ in mixes]
    with Recorder(capability) as recorder, torch.set_grad_enabled(training):
        backend, last = TritonBackend(), config.stages_num - 1
        engine = Engine.of(config, backend, precision, [collect_parameters(stage) for stage in network.stages])
        preparing = len(recorder.found)
        if training:
            dropout = engine.random_dropout(config.dropout)
            loss, _ = engine.loss([s.sum(1) for s in sources], sources, masks, dropout=dropout)
            loss.backward()
        else:
            engine.separate(mixes, {last})
    return Recorded(recorder.found[:preparing], recorder.found[preparing:])


def programs(config: MetaTasNetConfig, precision: Precision, capability: int, training: bool) -> list[Launch]:
    """Return one launch of each program that a network needs: for inference, or for training as well."""
    from ..kernels.recording import Launch, distinct

    samples = config.W * config.shortest_frames
    found: list[Any] = []
    for length, job in ((samples, False), (samples + 1, False), (samples + 2, False), (samples, True))[: 3 + training]:
        recorded = record(config, precision, capability, 2, length, job)
        found += recorded.preparing + recorded.running
    return distinct([each for each in found if isinstance(each, Launch)])


def precompile(
    config: MetaTasNetConfig,
    precision: Precision,
    capability: int,
    training: bool = False,
    workers: int | None = None,
    report: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Compile the programs of a network into Triton's cache, in several processes.

    Args:
        capability: compute capability of the target NVIDIA GPU as a whole number; the GPU need not be in this machine.
        workers: number of processes; by default one for each core.
        report: called with the number of programs compiled so far, and the number of all programs.

    Returns:
        the number of programs.

    Raises:
        RuntimeError: if a program does not compile.
    """
    what = (config, precision, capability, training)
    total, done = len(programs(*what)), 0
    count = min(total, workers or os.cpu_count() or 1)
    with ProcessPoolExecutor(count, get_context("spawn"), _record, what) as pool:
        for each in as_completed([pool.submit(_compile, number) for number in range(total)]):
            each.result()
            done += 1
            report(done, total)
    return total


_recorded: list[Launch] = []
"""All launches of the network; this worker process compiles some of them."""


def _record(*what: Any) -> None:
    from triton.runtime.driver import driver

    from ..kernels.recording import Target

    _recorded.extend(programs(*what))
    driver.set_active(Target(what[2]))


def _compile(number: int) -> None:
    from ..kernels.recording import compile_ahead

    compile_ahead(_recorded[number])
