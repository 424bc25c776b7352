"""Keep prepared weights until a parameter changes. Noticing a change takes a fraction of the time of reading all parameters.

Every call checks values that are cheap to read: which tensors there are, their version counters and addresses, how many steps
optimisers have taken in this process, and a few bytes of every tensor. The authors' optimiser, and averages of weights, write
through ``.data``. Such a write does not change a version counter, but it changes the number of steps, or the bytes. A write
through ``.data`` that changes only other bytes is noticed by a checksum of all values. The checksum is taken at every
``EVERY``-th call, and at the first call after :meth:`ParameterWatch.look_closely`. It is CRC-32 on a CPU, and a hash of the
same strength on other devices.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..config import MetaTasNetConfig, StageConfig
from ..precision import Precision
from .registry import Backend

__all__ = [
    "EVERY", "ParameterWatch", "PreparedCache", "can_watch", "collect_parameters", "fingerprint", "hash_on_device",
    "prepare_all",
]  # fmt: skip

Stage: TypeAlias = tuple[StageConfig, Mapping[str, Tensor]]


@dataclass
class _Entry:
    """Weights that a backend prepared.

    ``contents`` is the fingerprint of their parameters. ``ready`` is the event after which they are ready on a GPU. ``streams``
    are the streams that have used them.
    """

    contents: tuple[object, ...]
    prepared: list[Any]
    ready: torch.cuda.Event | None
    streams: set[int] = field(default_factory=set)


class PreparedCache:
    """The prepared weights of a network's stages; the latest ones are kept for each backend, precision and device.

    A change of a parameter is noticed at the next call. A write of single values through ``.data`` may be noticed later: at the
    latest after 64 calls or :meth:`look_closely`; see the top of this module. Copying or pickling a network leaves its cache
    out. ``DataParallel`` replicas share one cache, with one entry for each device.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], _Entry] = {}
        self._watch: ParameterWatch | None = None
        self._contents: tuple[object, ...] = ()
        self._lock = threading.RLock()

    def parameters(self, network: nn.Module) -> Sequence[Mapping[str, Tensor]]:
        """Return, for each of ``network.stages``, the parameters by name.

        The modules are searched only if a parameter was replaced since the last call.
        """
        with self._lock:
            if self._watch is not None and self._watch.complete(network):
                return self._watch.parameters
            stages = network.get_submodule("stages")
            assert isinstance(stages, nn.ModuleList)
            found = [collect_parameters(stage) for stage in stages]
            if can_watch(network, [tensor for stage in found for tensor in stage.values()]):
                self._watch, self._contents = ParameterWatch(network, found), ()
            return found

    def get(
        self,
        backend: Backend,
        precision: Precision,
        config: MetaTasNetConfig,
        parameters: Sequence[Mapping[str, Tensor]],
    ) -> list[Any]:
        """Return the prepared weights of all stages, without gradients.

        ``parameters`` is the result of :meth:`parameters`.
        """
        device = next(iter(parameters[0].values())).device
        key = (backend.name, backend.variant(), precision, device)
        with self._lock, torch.no_grad():
            contents = (config, *self._read(parameters))
            entry = self._entries.get(key)
            if entry is None or entry.contents != contents:
                if entry is not None and len(entry.streams) > 1:
                    torch.cuda.synchronize(device)  # another stream may still read the memory that is freed now
                stages = [(config.stage(index), stage) for index, stage in enumerate(parameters)]
                entry = _Entry(contents, prepare_all(backend, precision, stages), _recorded(device))
                self._entries[key] = entry
            _wait(entry, device)
        return entry.prepared

    def look_closely(self) -> None:
        """Make the next :meth:`get` read every parameter, even if no parameter seems to have changed."""
        with self._lock:
            if self._watch is not None:
                self._watch.look_closely()

    def clear(self) -> None:
        """Free all prepared weights."""
        with self._lock:
            self._entries.clear()
            self._watch = None

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedCache:
        return PreparedCache()

    def __reduce__(self) -> tuple[Callable[[], PreparedCache], tuple[()]]:
        return PreparedCache, ()

    def _read(self, parameters: Sequence[Mapping[str, Tensor]]) -> tuple[object, ...]:
        """Return the fingerprint of the parameters. They are read only if one may have changed since the last call."""
        watch = self._watch
        if watch is None or watch.parameters is not parameters:
            return fingerprint(tensor for stage in parameters for tensor in stage.values())
        if not self._contents or not watch.quiet():
            watch.accept()
            self._contents = fingerprint(watch.tensors)
        return self._contents


def prepare_all(backend: Backend, precision: Precision, stages: Sequence[Stage]) -> list[Any]:
    """Return the prepared weights of every stage. They are differentiable if gradients are enabled."""
    return [backend.prepare(config, parameters, precision) for config, parameters in stages]


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """Return an event that is recorded after the work now enqueued on the device's current stream; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _wait(entry: _Entry, device: torch.device) -> None:
    """Make the current stream wait until the weights are ready. Do nothing while a graph is captured: they are ready then."""
    if entry.ready is not None and not torch.cuda.is_current_stream_capturing():
        stream = torch.cuda.current_stream(device)
        stream.wait_event(entry.ready)
        entry.streams.add(stream.cuda_stream)


EVERY = 64
"""Calls between two checksums of all values: 45 million parameters take about 20 ms on a CPU."""

_MULTIPLIER = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed number."""

SAMPLE = 64
"""Bytes that every call reads from the middle of each tensor."""

_version = attrgetter("_version")
_steps = 0
_counting = False


def collect_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of ``module`` by name. It may be a ``DataParallel`` replica, whose parameters are plain tensors."""
    found: dict[str, Tensor] = {}
    for path, child in module.named_modules():
        own = getattr(child, "_former_parameters", None) or child._parameters
        found.update({f"{path}.{name}" if path else name: p for name, p in own.items() if p is not None})
    return found


def can_watch(module: nn.Module, tensors: list[Tensor]) -> bool:
    """Return whether the parameters can be watched.

    They must be ordinary tensors, not traced or transformed, of a module that is no replica.
    """
    return not getattr(module, "_is_replica", False) and all(
        type(tensor) in (nn.Parameter, Tensor) and tensor.device.type != "meta" and not tensor.is_inference()
        for tensor in tensors
    )


class ParameterWatch:
    """A watch on the parameters of every stage of a network: it checks whether they have changed.

    Args:
        network: the network that has the parameters.
        parameters: for every stage, the parameters by name, as :func:`collect_parameters` returns them.
    """

    def __init__(self, network: nn.Module, parameters: Sequence[Mapping[str, Tensor]]) -> None:
        _count_steps()
        self._modules = network._modules
        self.parameters = parameters
        self.tensors = [tensor for stage in parameters for tensor in stage.values()]
        self._dicts, self._names, self._values = zip(*_places(network), strict=True)
        self._views = [view for view in map(_middle, self.tensors) if view.numel()]
        arrays = (
            [view.numpy() for view in self._views] if all(view.device.type == "cpu" for view in self._views) else []
        )
        self._arrays: list[NDArray[numpy.uint8]] = arrays
        self._calls = 0
        self.accept()

    def accept(self) -> None:
        """Remember the present contents. Later calls of :meth:`quiet` compare with these contents."""
        self._known = self._cheap()
        self._bytes = self._sample()
        self._steps = _steps
        self._calls = 0

    def look_closely(self) -> None:
        """Make the next call of :meth:`quiet` return False, so that every parameter is read."""
        self._calls = EVERY

    def complete(self, network: nn.Module) -> bool:
        """Return whether ``network`` is the watched network, not a replica, and each of its parameters is still the same
        tensor."""
        return network._modules is self._modules and all(
            map(is_, map(dict.get, self._dicts, self._names), self._values)
        )

    def quiet(self) -> bool:
        """Return whether no parameter seems to have changed.

        Every ``EVERY``-th call returns False, so that all parameters are read.
        """
        self._calls += 1
        return (
            self._calls < EVERY
            and self._steps == _steps
            and self._cheap() == self._known
            and self._sample() == self._bytes
        )

    def _cheap(self) -> tuple[list[int], list[int]]:
        return list(map(_version, self.tensors)), list(map(Tensor.data_ptr, self.tensors))

    def _sample(self) -> bytes:
        if self._arrays:
            return numpy.concatenate(self._arrays).tobytes()
        return torch.cat(self._views).cpu().numpy().tobytes() if self._views else b""


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, object]]:
    """Yield every submodule and parameter in a module's tree, each as (dictionary that holds it, name, value)."""
    for child in module.modules():
        for name, submodule in child._modules.items():
            yield child._modules, name, submodule
        for name, parameter in child._parameters.items():
            yield child._parameters, name, parameter


def _middle(tensor: Tensor) -> Tensor:
    """Return up to ``SAMPLE`` bytes from the middle of a tensor, as a view. Of a strided tensor return only one value."""
    data = tensor.detach()
    if not data.is_contiguous():
        data = data[tuple(size // 2 for size in data.shape)]
    octets = data.reshape(-1).view(torch.uint8)
    return octets[max(0, octets.numel() - SAMPLE) // 2 :][:SAMPLE]


def _count_steps() -> None:
    global _counting
    if not _counting:
        register_optimizer_step_post_hook(_count_step)
        _counting = True


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


def fingerprint(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """Return a checksum of the bits of all tensors, together with their sizes, dtypes and devices.

    The result always changes if one value, or any 32 consecutive bits, are changed. Any other change keeps the result with a
    probability of 2^-32, unless it was made on purpose to keep the checksum.
    """
    signature: list[object] = []
    checksum = 0
    elsewhere: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        data = tensor.detach().contiguous().reshape(-1)
        signature.append((data.numel(), data.dtype, data.device))
        octets = data.view(torch.uint8)
        if data.device.type == "cpu":
            checksum = zlib.crc32(octets.numpy().data, checksum)
        else:
            elsewhere.setdefault(data.device, []).append(octets)
    hashes = [hash_on_device(torch.cat(parts)) for parts in elsewhere.values()]
    return (*signature, checksum, *(int(value) for value in hashes))


def hash_on_device(octets: Tensor) -> Tensor:
    """Return a 64-bit hash of bytes (n,), computed on their device.

    Mix each 8-byte word with its position, mix the result again, and add up all results. The mixing is that of Steele, Lea and
    Flood 2014 (SplitMix64). It is one-to-one, so one changed word changes the sum.
    """
    words = torch.nn.functional.pad(octets, (0, -octets.numel() % 8)).view(torch.int64)
    positions = torch.arange(1, words.numel() + 1, device=words.device)
    return _mix(words + _mix(positions * _MULTIPLIER)).sum()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)
