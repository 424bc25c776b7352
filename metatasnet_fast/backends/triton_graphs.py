"""CUDA graphs of a job, one for each shape of its inputs: a window's hundreds of launches become one.

Switched on by ``METATASNET_CUDA_GRAPHS=1`` in the environment, for inference only. A shape is captured when it comes for the
second time, so that single windows cost no memory. Inputs are copied into the graph's own tensors and the result out of them:
results stay the caller's. All graphs share one memory pool, so each waits for the one before, on whatever stream that ran.
Not yet run on a GPU.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SHAPES", "VARIABLE", "Graphs", "capture", "switched_on"]

VARIABLE = "METATASNET_CUDA_GRAPHS"
SHAPES = 4
"""Shapes whose graphs are kept; the one not used for longest goes."""

Job = Callable[..., Tensor]


def switched_on() -> bool:
    """True if the user asked for graphs."""
    return os.environ.get(VARIABLE) == "1"


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors it reads, and the one it writes."""

    replay: Callable[[], Any]
    inputs: tuple[Tensor | None, ...]
    output: Tensor


def capture(job: Job, inputs: tuple[Tensor | None, ...], pool: Any) -> Captured:
    """Capture ``job`` on copies of ``inputs``; it must have run on such inputs before, so that nothing is compiled now."""
    own = tuple(None if x is None else x.clone() for x in inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = job(*own)
    return Captured(graph.replay, own, output)


class Graphs:
    """Runs a job by replaying its graph, where that is allowed, and directly elsewhere.

    ``make`` captures; by default :func:`capture`.
    """

    def __init__(self, job: Job, make: Callable[[Job, tuple[Tensor | None, ...], Any], Captured] = capture) -> None:
        self._job = job
        self._make = make
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[object, ...], Captured | None] = OrderedDict()
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if not self._allowed(*inputs):
            return self._job(*inputs)
        key = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        with self._lock:
            if key not in self._seen:
                self._remember(key, None)
                return self._job(*inputs)
            captured = self._seen[key]
            if captured is None:
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else ()
                captured = self._make(self._job, inputs, self._pool)
            self._remember(key, captured)
            if self._done is not None:
                self._done.wait()
            for own, given in zip(captured.inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            captured.replay()
            result = captured.output.clone()
            if result.is_cuda:
                self._done = torch.cuda.Event()
                self._done.record()
            return result

    def _remember(self, key: tuple[object, ...], captured: Captured | None) -> None:
        self._seen[key] = captured
        self._seen.move_to_end(key)
        while len(self._seen) > SHAPES:
            self._seen.popitem(last=False)

    @staticmethod
    def _allowed(*inputs: Tensor | None) -> bool:
        """Not for empty batches, gradients, torch.compile, or inside somebody else's capture."""
        given = [x for x in inputs if x is not None]
        capturing = given[0].is_cuda and torch.cuda.is_current_stream_capturing()
        return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or capturing) and all(
            x.numel() for x in given
        )
