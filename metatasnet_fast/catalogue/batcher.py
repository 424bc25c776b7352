"""Run the network from one thread, on batches of windows of many songs. All windows of a batch have one length.

    song threads --windows--> [waiting, by window length] --batches--> device thread --estimates--> song threads

Only a limited number of windows of each song wait, so the memory is bounded, however long the songs are. A song that is
shorter than a window has a window of its own length, which shares a batch only with windows of that length: the group
norms see the whole window, so padding would change the stems.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..model.engine import Engine
from ..separation.devices import BatchRunner, is_out_of_memory
from .cores import CorePlan
from .events import StageLoad

__all__ = ["Batcher", "song_stream"]

BATCHES_AHEAD = 3
"""Number of batches whose windows may be on their way at once: one on the device, one waiting, one being stitched."""

BATCHES_QUEUED = 2
"""Largest number of batches in a GPU's queue: enough that the GPU never waits for the host, and the memory stays
bounded."""


def song_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Run the GPU work of the block on a stream of its own. Its priority is above that of the network's stream, because
    the network waits for this work. On a CPU, change nothing."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1))


def mark(device: torch.device) -> torch.cuda.Event | None:
    """Record an event in the current stream, after which the tensors made so far are ready, and return the event; None
    on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def take_over(tensors: Iterable[Tensor], made: torch.cuda.Event | None) -> None:
    """Let the current stream, which will use ``tensors``, wait for the event ``made`` of the stream that makes them."""
    if made is None:
        return
    for tensor in tensors:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(made)
        tensor.record_stream(stream)


Estimate: TypeAlias = "tuple[Tensor, torch.cuda.Event | None]"
"""The stems of a window, and the event after which they are ready (None on a CPU)."""


@dataclass(eq=False)
class _Request:
    window: Sequence[Tensor]
    made: torch.cuda.Event | None
    future: Future[Estimate]
    order: int


class Batcher(BatchRunner):
    """The device stage. It takes the place of the ``BatchRunner`` of a single song, and joins the windows of all songs.

    Args:
        engine: engine that separates a batch.
        batch_size: windows in a batch; halved when memory runs out, with a sentence to ``warn``.
        device: device of the engine.
        cores: plan that says how many of torch's threads the device thread uses.
    """

    def __init__(
        self,
        engine: Engine,
        batch_size: int,
        warn: Callable[[str], object],
        device: torch.device,
        cores: CorePlan,
    ) -> None:
        super().__init__(batch_size, warn)
        self.engine, self._device, self._cores = engine, device, cores
        self.windows_done = 0
        self.busy_seconds = 0.0
        """Seconds in which the device worked on batches; batches still in the GPU's queue are not counted."""
        self.lost: Exception | None = None
        """The error that made the device unusable for the rest of the process, or None."""
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._queued: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        """Events at the begin and the end of each batch in a GPU's queue."""
        self._orders = itertools.count()
        self._songs = 0
        self._thread = ThreadPoolExecutor(1, "device")
        # Before any song begins: a thread adopts the number of torch's threads that was set last, and that must be a
        # song's.
        self._thread.submit(self._enter_thread).result()

    def load(self) -> StageLoad:
        return StageLoad(1, len(self._waiting), round(self.busy_seconds, 3))

    def run(self, engine: object, windows: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
        """Yield the last stage's estimate of each window of a song, (I, samples), in order. Call this in the song's
        thread.

        Args:
            engine: not used; all songs share the engine of this object.

        Raises:
            MetaTasNetError: if a window does not fit into memory.
        """
        source = iter(windows)
        pending: deque[Future[Estimate]] = deque()
        with self._lock:
            order = next(self._orders)
            self._songs += 1
        try:
            while True:
                for window in itertools.islice(source, max(0, self._ahead() - len(pending))):
                    pending.append(self._submit(window, order))
                if not pending:
                    return
                estimate, made = pending.popleft().result()
                take_over([estimate], made)
                yield estimate
        finally:
            with self._lock:
                self._songs -= 1
            for future in pending:
                future.cancel()

    def settle(self) -> None:
        """Wait until the device has finished its queue, so that :meth:`load` is complete."""
        self._thread.submit(self._collect, 0).result()

    def close(self) -> None:
        """End the device thread, and cancel the windows that still wait."""
        self._thread.shutdown(cancel_futures=True)
        for request in self._waiting:
            request.future.cancel()

    def is_lost(self, error: Exception) -> bool:
        """Return whether the device has become unusable, by this error or an earlier one.

        An illegal memory access, for example, makes a GPU unusable for the rest of the process.
        """
        text = str(error)
        if "CUDA error" in text and "ALLOC_FAILED" not in text and not is_out_of_memory(error):
            self.lost = error
        return self.lost is not None

    def _ahead(self) -> int:
        """Return how many windows one song may have on their way: an equal part of BATCHES_AHEAD batches."""
        return max(2, -(-BATCHES_AHEAD * self.batch_size // max(1, self._songs)))

    def _submit(self, window: Sequence[Tensor], order: int) -> Future[Estimate]:
        request = _Request(window, mark(self._device), Future(), order)
        with self._lock:
            self._waiting.append(request)
        self._thread.submit(self._serve_next)
        return request.future

    def _enter_thread(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # kernels run on the current device
        self._cores.enter_thread(network=True)

    def _serve_next(self) -> None:
        """Separate a batch of waiting windows of one length, those of the oldest song first.

        Windows that arrive while the device works wait for the next batch. So batches are fuller when the device is
        busier.
        """
        with self._lock:
            self._waiting.sort(key=lambda request: request.order)  # stable: each song's windows keep their order
            fitting = (r for r in self._waiting if r.window[0].shape[-1] == self._waiting[0].window[0].shape[-1])
            batch = list(itertools.islice(fitting, self.batch_size))
            for request in batch:
                self._waiting.remove(request)
        batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
        if batch:
            self._serve(batch)

    @torch.no_grad()
    def _serve(self, batch: list[_Request]) -> None:
        """Separate a batch. If that fails, separate each window alone, so that one window does not make the others
        fail."""
        try:
            with self._measured():
                for request in batch:
                    take_over(request.window, request.made)
                windows = [request.window for request in batch]
                estimates = list(super().run(self.engine, windows))
            made = mark(self._device)
        except Exception as error:
            if self.is_lost(error) or len(batch) == 1:
                for request in batch:
                    request.future.set_exception(error)
            else:
                for request in batch:
                    self._serve([request])
            return
        for request, estimate in zip(batch, estimates, strict=True):
            request.future.set_result((estimate, made))
        self.windows_done += len(batch)

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        """Add the seconds of the work in the block to ``busy_seconds``.

        On a GPU, calls return at once: the GPU's events measure the time, and it is added when the batch has left the
        queue. The work is also marked as an NVTX range, and the end of the block waits while the queue is full.
        """
        if self._device.type != "cuda":
            began = time.perf_counter()
            try:
                yield
            finally:
                self.busy_seconds += time.perf_counter() - began
            return
        stream = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.nvtx.range("separate"):
            begin.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._queued.append((begin, end))
        self._collect(BATCHES_QUEUED - 1)

    def _collect(self, left: int) -> None:
        """Wait until the GPU's queue has at most ``left`` batches; add the time of the batches that left it to
        ``busy_seconds``."""
        while len(self._queued) > left:
            begin, end = self._queued.popleft()
            end.synchronize()
            self.busy_seconds += begin.elapsed_time(end) / 1000
