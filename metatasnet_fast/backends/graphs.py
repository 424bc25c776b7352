"""CUDA graphs of short inference jobs: the hundreds of launches of a window become one.

From encoder to decoder a batch of windows takes about 300 launches of Triton's, 6.3 us of Python each, and the backend ``cuda``
takes launches, too. A GPU needs longer for many windows and hides them; for one or two it would wait. So jobs on up to
:data:`SECONDS` of audio are captured, when their shapes come for the second time, and replayed from then on. The first replay
must give the bits of the launches themselves. Where capturing fails, or the bits differ, a warning says why and the network's
jobs are launched as before. ``METATASNET_CUDA_GRAPHS=0`` switches all of it off. Inputs are copied into the graph's own tensors
and the results out of them: results stay the caller's. The graphs of a network share one memory pool, so each waits for the
one before, on whatever stream that ran. Batches are not padded to a few sizes: the additional items would cost more than the
launches of a shape that comes once.
Not yet run on a GPU.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .base import Backend

__all__ = ["SECONDS", "SHAPES", "VARIABLE", "GraphedBackend", "Graphs", "capture", "switched_on"]

VARIABLE = "METATASNET_CUDA_GRAPHS"
SECONDS = 30.0
"""Seconds of audio, all items together, up to which a job is captured. It bounds the memory that graphs keep, too."""
SHAPES = 4
"""Shapes whose graphs are kept; the one not used for longest goes."""

Results: TypeAlias = tuple[Tensor, ...]
Job: TypeAlias = Callable[..., Results]

logger = logging.getLogger("metatasnet_fast")
_capturing = threading.Lock()


def switched_on() -> bool:
    """Return False if the user switched graphs off."""
    return os.environ.get(VARIABLE) != "0"


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors that it reads, and those that it writes."""

    replay: Callable[[], Any]
    inputs: Results
    outputs: Results


def capture(job: Job, inputs: Sequence[Tensor], pool: Any) -> Captured:
    """Capture ``job`` on copies of ``inputs``, on a stream of their device.

    The job must have run on such inputs before, so that nothing is compiled now.
    """
    device = inputs[0].device
    with _capturing, torch.cuda.device(device):
        own, graph = tuple(x.clone() for x in inputs), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            outputs = job(*own)
    return Captured(graph.replay, own, outputs)


class Graphs:
    """The graphs of one network's inference jobs on one device.

    Args:
        sampling_rate: samples per second of a job's first input.
        make: captures a job; by default :func:`capture`.
    """

    def __init__(self, sampling_rate: int, make: Callable[[Job, Sequence[Tensor], Any], Captured] = capture) -> None:
        self._most_samples = SECONDS * sampling_rate
        self._make = make
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[object, ...], Captured | None] = OrderedDict()
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None
        self._failed = False

    def run(self, job: Job, name: Hashable, inputs: Sequence[Tensor]) -> Results:
        """Return ``job(*inputs)``, by the graph of this name and these shapes where that is allowed."""
        if not self._allowed(inputs):
            return job(*inputs)
        key = (name, *((x.shape, x.dtype, x.device) for x in inputs))
        with self._lock, torch.inference_mode(False), torch.no_grad():
            captured = self._seen.get(key)
            if captured is None:
                expected = job(*inputs)
                if key in self._seen:
                    captured = self._captured(job, inputs, expected)
                if not self._failed:
                    self._remember(key, captured)
                return expected
            self._remember(key, captured)
            return self._replayed(captured, inputs)

    def _captured(self, job: Job, inputs: Sequence[Tensor], expected: Results) -> Captured | None:
        try:
            if self._pool is None and inputs[0].is_cuda:
                self._pool = torch.cuda.graph_pool_handle()
            captured = self._make(job, inputs, self._pool)
            found = self._replayed(captured, inputs)
            if all(_same_bits(one, other) for one, other in zip(found, expected, strict=True)):
                return captured
            reason = "the first replay gave other values than the launches themselves"
        except RuntimeError as error:
            reason = f"capturing failed ({error})"
        self._failed = True
        self._seen.clear()
        logger.warning(
            "CUDA graphs are off for this network: %s. Its kernels are launched one by one; "
            "%s=0 does so from the start.", reason, VARIABLE,
        )  # fmt: skip
        return None

    def _replayed(self, captured: Captured, inputs: Sequence[Tensor]) -> Results:
        if self._done is not None:
            self._done.wait()
        for own, given in zip(captured.inputs, inputs, strict=True):
            own.copy_(given)
        captured.replay()
        results = tuple(output.clone() for output in captured.outputs)
        if results[0].is_cuda:
            with torch.cuda.device(results[0].device):
                self._done = torch.cuda.Event()
                self._done.record()
        return results

    def _remember(self, key: tuple[object, ...], captured: Captured | None) -> None:
        self._seen[key] = captured
        self._seen.move_to_end(key)
        while len(self._seen) > SHAPES:
            self._seen.popitem(last=False)

    def _allowed(self, inputs: Sequence[Tensor]) -> bool:
        """Not for empty batches, long jobs, gradients, torch.compile, or inside the caller's own capture."""
        if self._failed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        capturing = inputs[0].is_cuda and torch.cuda.is_current_stream_capturing()
        return not capturing and 0 < inputs[0].numel() <= self._most_samples


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class GraphedBackend(Backend):
    """A backend whose prepared stages have ``graphs``: those of the whole network's jobs with the first one, or None."""

    def variant(self) -> str:
        return "" if switched_on() else "no graphs"

    def repeat(self, prepared: Sequence[Any], job: Job, name: Hashable, inputs: Sequence[Tensor]) -> Results:
        graphs: Graphs | None = prepared[0].graphs
        return job(*inputs) if graphs is None else graphs.run(job, name, inputs)
