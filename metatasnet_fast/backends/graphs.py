"""Run short inference jobs as CUDA graphs: one launch instead of hundreds.

From encoder to decoder a batch of windows takes about 300 launches of Triton kernels, each of which takes 6.3 us of Python. The
backend ``cuda`` has many launches, too. For many windows the GPU works longer than the launches take. For one or two windows it
would wait for launches. So jobs on up to :data:`SECONDS` of audio are captured in a graph when their shapes occur for the
second time. From the third time on, the graph is replayed. The first replay must give the same bits as the separate launches.
If capturing fails, or the bits differ, a warning gives the reason, and the network's jobs are launched without graphs.
``METATASNET_CUDA_GRAPHS=0`` switches graphs off.
Inputs are copied into the graph's own tensors, and results are copied out of the graph's tensors. So a later replay does not
change results that the caller has. The graphs of a network share one memory pool, so each replay waits for the previous one,
also on another stream. Batches are not padded to a few sizes: the additional items would cost more than the separate launches
of a shape that occurs once.
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

from .registry import Backend

__all__ = ["GRAPHS", "SECONDS", "SHAPES", "Captured", "GraphedBackend", "Graphs", "capture", "switched_on"]

GRAPHS = "METATASNET_CUDA_GRAPHS"
SECONDS = 30.0
"""Seconds of audio, all items together, up to which a job is captured. This also limits the memory that graphs keep."""
SHAPES = 4
"""Number of pairs of a job and its shapes that are kept, with their graphs. The least recently used pair is dropped."""

Results: TypeAlias = tuple[Tensor, ...]
Job: TypeAlias = Callable[..., Results]

logger = logging.getLogger("metatasnet_fast")
_capturing = threading.Lock()


def switched_on() -> bool:
    """Return whether graphs are on: False if the user switched them off."""
    return os.environ.get(GRAPHS) != "0"


@dataclass(frozen=True)
class Captured:
    """A captured graph: ``replay`` runs it, ``inputs`` are the tensors that it reads, ``outputs`` those that it writes."""

    replay: Callable[[], Any]
    inputs: Results
    outputs: Results


def capture(job: Job, inputs: Sequence[Tensor], pool: Any) -> Captured:
    """Return the graph of ``job``, captured on copies of ``inputs`` on a stream of their device.

    The job must have run on inputs of these shapes before, so that no kernel is compiled during the capture.
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
        make: function that captures a job; by default :func:`capture`.
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
        """Return ``job(*inputs)``, computed by a graph if graphs are allowed.

        There is one graph for each name together with the shapes, dtypes and devices of the inputs. The first call runs the
        job. The second call runs the job and captures it. Later calls replay the graph. If capturing fails, this call and all
        later ones run their jobs without graphs.
        """
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
            "%s=0 does so from the start.", reason, GRAPHS,
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
        """Return whether a graph may run the job.

        It may not for empty batches or long jobs, with gradients, in torch.compile, in a capture of the caller, or after a
        failed capture.
        """
        if self._failed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        capturing = inputs[0].is_cuda and torch.cuda.is_current_stream_capturing()
        return not capturing and 0 < inputs[0].numel() <= self._most_samples


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class GraphedBackend(Backend):
    """A backend that runs repeated jobs as CUDA graphs.

    Its prepared stages have an attribute ``graphs``. That of stage 0 holds the :class:`Graphs` of the whole network, or None.
    """

    def variant(self) -> str:
        return "" if switched_on() else "no graphs"

    def repeat(self, prepared: Sequence[Any], job: Job, name: Hashable, inputs: Sequence[Tensor]) -> Results:
        graphs: Graphs | None = prepared[0].graphs
        return job(*inputs) if graphs is None else graphs.run(job, name, inputs)
