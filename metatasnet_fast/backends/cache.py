"""Prepared weights, kept until a parameter changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..config import MetaTasNetConfig, StageConfig
from ..precision import Precision
from .base import Backend
from .watch import ParameterWatch, can_watch, collect_parameters, fingerprint

__all__ = ["PreparedCache", "prepare_all"]

Stage: TypeAlias = tuple[StageConfig, Mapping[str, Tensor]]


@dataclass
class _Entry:
    """Weights that a backend prepared, the fingerprint of their parameters, and the event that marks them ready on a GPU."""

    contents: tuple[object, ...]
    prepared: list[Any]
    ready: torch.cuda.Event | None
    streams: set[int] = field(default_factory=set)


class PreparedCache:
    """Prepared weights of a network's stages: the latest for each backend, precision and device.

    A change of a parameter is noticed at the next call. A write of single values through ``.data`` may be noticed later: at the
    latest after 64 calls or :meth:`look_closely`; see ``watch.py``. Copying or pickling a network leaves its cache out.
    ``DataParallel`` replicas share one cache, with one entry for each device.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], _Entry] = {}
        self._watch: ParameterWatch | None = None
        self._contents: tuple[object, ...] = ()
        self._lock = threading.RLock()

    def parameters(self, network: nn.Module) -> Sequence[Mapping[str, Tensor]]:
        """Return the parameters of each of ``network.stages`` by name; search the modules only if a parameter was replaced."""
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
        """Return the prepared weights of all stages, without gradients; ``parameters`` is what :meth:`parameters`
        returned."""
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
        """Make the next call read every parameter, even if no parameter seems to have changed."""
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
        """Return the fingerprint of the parameters; read the parameters only if one may have changed since the last call."""
        watch = self._watch
        if watch is None or watch.parameters is not parameters:
            return fingerprint(tensor for stage in parameters for tensor in stage.values())
        if not self._contents or not watch.quiet():
            watch.accept()
            self._contents = fingerprint(watch.tensors)
        return self._contents


def prepare_all(backend: Backend, precision: Precision, stages: Sequence[Stage]) -> list[Any]:
    """Prepare every stage; differentiable if gradients are enabled."""
    return [backend.prepare(config, parameters, precision) for config, parameters in stages]


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """Record an event after the work that is enqueued on the device; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _wait(entry: _Entry, device: torch.device) -> None:
    """Make the current stream wait until the weights are ready; not during graph capture, when they already are."""
    if entry.ready is not None and not torch.cuda.is_current_stream_capturing():
        stream = torch.cuda.current_stream(device)
        stream.wait_event(entry.ready)
        entry.streams.add(stream.cuda_stream)
