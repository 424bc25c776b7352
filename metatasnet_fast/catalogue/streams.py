"""CUDA streams: each song's thread has one of its own, so that waiting for a number of it is not waiting for the network.

The network runs on the default stream. A tensor that goes from one stream to another takes an event with it, for which the
other stream waits, and is registered there, so that its memory is not reused too early. On other devices none of this is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Handover", "song_stream", "use_device"]


def use_device(device: torch.device) -> None:
    """Make a GPU the calling thread's own: kernels are launched on the current one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def song_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A stream for all that a thread does in the block, ahead of the network: songs need little and feed it."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1))


@dataclass(frozen=True)
class Handover:
    """Tensors on their way to another stream."""

    event: torch.cuda.Event | None

    @classmethod
    def give(cls, device: torch.device) -> Handover:
        """Called where the tensors were made."""
        if device.type != "cuda":
            return cls(None)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return cls(event)

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Called where they are used."""
        if self.event is None:
            return
        for tensor in tensors:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(self.event)
            tensor.record_stream(stream)
