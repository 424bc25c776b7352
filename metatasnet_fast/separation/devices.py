"""Choose the device that separates, and the one that keeps signals; and say what needs less memory when it runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ..errors import BackendUnavailableError, ConfigError, MetaTasNetError, OutOfMemoryError
from ..model.methods import NetworkMethods
from .recording import Recording

__all__ = ["choose_device", "choose_home", "is_out_of_memory", "memory_for", "parse_device", "reporting_memory"]


def parse_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, which need not be there; raises :class:`ConfigError` for one that torch does not know."""
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Unknown device {name!r}; choose auto, cpu, cuda or cuda:1.") from error


def choose_device(wanted: str | torch.device, network: NetworkMethods) -> torch.device:
    """Return the device as ``Separator`` documents it, with its index.

    Raises:
        ConfigError: for a name that torch does not know.
        BackendUnavailableError: for a CUDA device that is absent.
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
        stems: how many the network makes.
        room: None for a quarter of the device's free memory.
    """
    if device.type != "cuda" or recording.samples is None:
        return torch.device("cpu")
    # The recording, its resampled forms (together about twice its size), and the stems, in float32.
    size = (3 + stems) * 4 * recording.samples * recording.channels
    most = torch.cuda.mem_get_info(device)[0] / 4 if room is None else room
    return device if size < most else torch.device("cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc")
    )


def memory_for(what: str, advice: str) -> contextlib.AbstractContextManager[None]:
    """Raise :class:`OutOfMemoryError` for a failed allocation in the block: there is too little memory for ``what``."""
    return reporting_memory(lambda: f"Memory does not suffice for {what}: {advice}.", OutOfMemoryError)


@contextlib.contextmanager
def reporting_memory(message: Callable[[], str], kind: type[MetaTasNetError]) -> Iterator[None]:
    """Turn a failed allocation in the block into an error of a given type.

    Args:
        message: its sentence; called only when it is needed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MetaTasNetError) or not is_out_of_memory(error):
            raise
        raise kind(message()) from error
