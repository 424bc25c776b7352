"""Choose the device that separates, and the device that keeps signals; run the network on many windows at once.

When memory runs out, the network runs on fewer windows at once. If that does not suffice, the error says how to use
less memory.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..errors import BackendUnavailableError, ConfigError, MetaTasNetError, OutOfMemoryError
from ..model.engine import Engine
from ..model.methods import NetworkMethods
from .recording import Recording

__all__ = [
    "BatchRunner", "automatic_batch_size", "choose_device", "choose_home", "is_out_of_memory", "memory_for",
    "parse_device", "reporting_memory",
]  # fmt: skip


def parse_device(name: str | torch.device) -> torch.device:
    """Return the torch device of a name; raise :class:`ConfigError` for a name that torch does not know.

    This machine need not have the device.
    """
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Unknown device {name!r}; choose auto, cpu, cuda or cuda:1.") from error


def choose_device(wanted: str | torch.device, network: NetworkMethods) -> torch.device:
    """Return the device that ``wanted``, the argument ``device`` of ``Separator``, means; a CUDA device has its index.

    Raises:
        ConfigError: for a name that torch does not know.
        BackendUnavailableError: for a device that is absent, or that cannot compute here.
    """
    if wanted == "auto":
        if network.device.type != "cpu":
            return network.device
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = parse_device(wanted)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                f"The device {device} was asked for and torch finds no CUDA device: install a driver and a CUDA build of "
                "torch, or separate on the CPU."
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise BackendUnavailableError(
                f"There is no {device}: torch finds {torch.cuda.device_count()} CUDA devices."
            )
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendUnavailableError(
            f"The device {device} cannot compute here ({reason}): choose auto or cpu."
        ) from error
    return device


def choose_home(device: torch.device, recording: Recording, stems: int, room: float | None = None) -> torch.device:
    """Return ``device`` if it is a GPU and the recording's signals take less than ``room`` bytes, else the CPU.

    Args:
        stems: number of stems that the network makes.
        room: bytes that the signals may take; None for a quarter of the device's free memory.
    """
    if device.type != "cuda" or recording.samples is None:
        return torch.device("cpu")
    # In float32: the recording, its resampled forms (together about twice its size), and the stems.
    size = (3 + stems) * 4 * recording.samples * recording.channels
    most = torch.cuda.mem_get_info(device)[0] / 4 if room is None else room
    return device if size < most else torch.device("cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc")
    )


def memory_for(what: str, advice: str) -> contextlib.AbstractContextManager[None]:
    """Turn a failed allocation in the block into an :class:`OutOfMemoryError` about ``what``, with advice."""
    return reporting_memory(lambda: f"Memory does not suffice for {what}: {advice}.", OutOfMemoryError)


@contextlib.contextmanager
def reporting_memory(message: Callable[[], str], kind: type[MetaTasNetError]) -> Iterator[None]:
    """Turn a failed allocation in the block into an error of the type ``kind``.

    Args:
        message: function that returns the text of the error; called only after a failed allocation.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MetaTasNetError) or not is_out_of_memory(error):
            raise
        raise kind(message()) from error


MOST_WINDOWS = 32
MEMORY_SHARE = 0.6
"""Share of a GPU's free memory that a batch may use by the estimate."""

LIVE_TENSORS = 8
"""Memory that a window takes, in units of the last stage's masked latent, in the backend that needs most. Measured on a
CPU with the authors' sizes in float32: 7.9 (1.5 in the compiled backend)."""


class BatchRunner:
    """Runner that gives the windows of one or more recordings to the network, in batches of ``batch_size``.

    When memory runs out, ``batch_size`` is lowered for good, and ``warn`` is called with a sentence.
    """

    def __init__(self, batch_size: int, warn: Callable[[str], object]) -> None:
        self.batch_size = batch_size
        self._warn = warn

    def run(self, engine: Engine, windows: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
        """Separate windows of one length.

        Args:
            engine: engine that separates a batch.
            windows: for each window, its mixture for every stage, (1, samples).

        Returns:
            the last stage's estimate of each window, (I, samples), in order.

        Raises:
            OutOfMemoryError: if a single window does not fit into memory.
        """
        source = iter(windows)
        waiting: deque[Sequence[Tensor]] = deque()
        last = engine.config.stages_num - 1
        while True:
            waiting.extend(islice(source, max(0, self.batch_size - len(waiting))))
            if not waiting:
                return
            batch = list(islice(waiting, self.batch_size))
            try:
                mixes = [torch.stack(stage) for stage in zip(*batch, strict=True)]
                estimates = engine.separate(mixes, {last})[last][:, :, 0]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise OutOfMemoryError(
                        "Memory does not suffice for a single window: free some, or separate on another device."
                    ) from error
                self.batch_size = len(batch) // 2
                self._warn(f"Memory ran out with {len(batch)} windows at once; went on with {self.batch_size}.")
                estimates = None
            # Only after the handler: in the handler, the traceback of the exception keeps the tensors alive.
            if estimates is None:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            for _ in batch:
                waiting.popleft()
            yield from estimates


def automatic_batch_size(engine: Engine, frames: int, device: torch.device) -> int:
    """Return how many windows of ``frames`` latent frames to run at once.

    On a GPU, these are as many as should fit into 60 % of the free memory, from 1 to 32. On a CPU it is one. The
    compiled backend, which runs one instrument of one window in each thread, gets enough windows to keep all threads
    busy.
    """
    if device.type != "cuda":
        return (
            max(1, -(-torch.get_num_threads() // len(engine.config.instruments))) if engine.backend.name == "cpu" else 1
        )
    free, _ = torch.cuda.mem_get_info(device)
    window = (
        LIVE_TENSORS
        * len(engine.config.instruments)
        * engine.config.stages[-1].N
        * frames
        * engine.precision.storage.itemsize
    )
    return max(1, min(MOST_WINDOWS, int(MEMORY_SHARE * free) // window))
