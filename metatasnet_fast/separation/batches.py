"""Running windows through the network, many at once; when memory runs out, fewer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..errors import OutOfMemoryError
from ..model.engine import Engine
from .devices import is_out_of_memory

__all__ = ["BatchRunner", "automatic_batch_size"]

MOST_WINDOWS = 32
MEMORY_SHARE = 0.6
"""Share of a GPU's free memory that a batch is planned to use."""

LIVE_TENSORS = 8
"""Memory of a window, measured in masked latents of the last stage, in the backend that needs most: 7.9 measured on a
CPU with the authors' sizes in float32 (1.5 in the compiled backend)."""


class BatchRunner:
    """Gives windows to the network in batches of ``batch_size``, of one recording or of several.

    ``batch_size`` is lowered permanently when memory runs out.
    """

    def __init__(self, batch_size: int, warn: Callable[[str], object]) -> None:
        self.batch_size = batch_size
        self._warn = warn

    def run(self, engine: Engine, windows: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
        """Separate windows of one length.

        Args:
            windows: for each window, (1, samples) for every stage.

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
            # After the handler: the exception's traceback would keep the tensors alive.
            if estimates is None:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            for _ in batch:
                waiting.popleft()
            yield from estimates


def automatic_batch_size(engine: Engine, frames: int, device: torch.device) -> int:
    """Return how many windows of ``frames`` latent frames to run at once.

    On a GPU as many as fit into the free memory, at most 32. On a CPU one; for the compiled backend, which gives every
    thread an instrument of a window, as many as keep all threads busy.
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
