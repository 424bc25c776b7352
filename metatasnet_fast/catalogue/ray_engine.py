"""Run a catalogue with the engine ``ray``: an actor of a Ray cluster starts each worker's process, on its machine.

    driver: songs, the longest first -> actor -> process with the model -> events -> actor -> driver: ledger, display

There is one actor for each GPU, or for each machine. Only addresses pass through Ray, never waveforms: audio goes
straight from the source to the worker, and from the worker to the destination. The driver watches the processes as it
does without Ray. If an actor dies, the driver starts another one, and the dead actor's songs are tried again. Without a
cluster, Ray is started on this machine, and all files of Ray are removed at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._extras import require
from .._terminal import handling
from ..errors import ConfigError
from .cores import available_cores
from .destination import Destination, remove_abandoned
from .events import Listener, Notice, RunEnded
from .local import WorkerPool, run_local
from .settings import Settings, Song
from .storage import local_path
from .supervised import ChildProcess, Gone, Order

__all__ = ["Node", "Pool", "plan_pool", "run_ray"]

OBJECT_STORE = 256 * 2**20
"""Bytes of Ray's object store. Only addresses and outcomes pass through it."""

FOLDER_PREFIX = "mtfray-"
"""Beginning of the name of Ray's folder. The number of the process that made the folder follows."""

LONGEST_FOLDER = 16
"""Largest length in bytes of the path of the parent of Ray's folder. The path of a socket may have 107 bytes, and the
names below the parent take the rest."""

QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment variables that are set for Ray, unless they are set already."""

KNOCK_SECONDS = 10.0
"""Seconds that a cluster may take to accept a connection."""

RECEIVE_SECONDS = 60.0
"""Seconds that an actor waits for a message of its process before it asks again."""

FAREWELL_SECONDS = 3.0
"""Seconds that the workers may take to end when Ray ends them. Then their folders are removed."""

PATIENCE = 60.0
"""Seconds after which a notice says that a worker still has no place in the cluster, and between two such notices."""


def run_ray(
    songs: Sequence[Song],
    settings: Settings,
    destination: str,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> RunEnded:
    """Separate songs as :func:`run_local` does, on a Ray cluster, or on this machine with a Ray that is started for the
    run.

    Args:
        songs, settings, destination: as for :func:`run_local`, with absolute paths: the actors run in other folders.
        listener, stop: as for :func:`run_local`.
        address: address of a Ray cluster, as ``ray.init`` takes it; None to start Ray on this machine and to end it
            afterwards.
        workers: largest number of actors; None for one on each GPU, or on each machine if there is no GPU.
        options: the other options of :func:`run_local`; ``price_per_hour`` is that of one machine.

    Raises:
        ConfigError: if the cluster cannot be joined, or has no room for the workers.
        MissingDependencyError: if the package ray is missing.
        MetaTasNetError: if the model cannot be loaded, or no worker stays alive.
    """
    with contextlib.ExitStack() as stack:
        # A worker that Ray ends has no time to remove its folder.
        stack.callback(remove_abandoned, Destination(destination).storage, FAREWELL_SECONDS)
        ray = stack.enter_context(ray_cluster(address))
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Node(int(entry.get("CPU", 0)), int(entry.get("GPU", 0))) for entry in there]
        pool = plan_pool(nodes, settings.device, settings.threads, workers)
        # An actor sees the GPU that it holds, and no other.
        settings = replace(settings, threads=pool.cpus, device="cuda" if pool.gpus else settings.device)
        notices = [f"Ray: {pool.describe()}."]
        if address and local_path(destination) is not None:
            notices.append(
                f"{destination} is a local path: every machine of the cluster must have the same folder there."
            )
        actors = WorkerPool("ray", [settings] * pool.workers, partial(ActorProcess, ray, pool), pool.machines, notices)
        return run_local(songs, settings, destination, listener, stop, pool=actors, **options)


class SeparateSongs(ChildProcess):
    """The actor: it starts a worker's process on its machine, and passes messages on, with a thread for each
    direction."""

    def messages(self) -> Iterator[object]:
        """Yield the messages of the process as they come. The last message says that the process has ended."""
        message = None
        while not isinstance(message, Gone):
            message = self.receive(RECEIVE_SECONDS)
            if message is not None:
                yield message


class ActorProcess:
    """A :class:`Process` that an actor has started; this object is in the driver."""

    def __init__(self, ray: Any, pool: Pool, order: Order) -> None:
        self._ray, self._pool = ray, pool
        self._place = ray.util.placement_group([{"CPU": pool.cpus, **({"GPU": pool.gpus} if pool.gpus else {})}])
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._place)
        options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "scheduling_strategy": strategy, "max_concurrency": 2}
        # No token: each machine reads the destination's mark itself, as its file systems may have other device numbers.
        self._actor = ray.remote(**options)(SeparateSongs).remote(replace(order, token=None))
        self._messages = self._actor.messages.remote()
        self._say_at: float | None = time.monotonic() + PATIENCE
        """Time of the next notice that the actor has no place yet; None once the actor has a place."""

    def send(self, message: Song | None) -> None:
        self._actor.send.remote(message)

    def receive(self, seconds: float) -> object:
        try:
            if not self._ray.wait([self._messages], timeout=seconds)[0]:
                return self._waiting()
            message = self._ray.get(next(self._messages))
        except self._ray.exceptions.RayError as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            message = Gone(f"{type(error).__name__}: {last[:200]}", machine_lost=True)
        self._say_at = None
        return message

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._ray.util.remove_placement_group(self._place)

    def _waiting(self) -> Notice | None:
        """Return a notice if the actor has had no place in the cluster for PATIENCE seconds."""
        if self._say_at is None or time.monotonic() < self._say_at:
            return None
        self._say_at = time.monotonic() + PATIENCE
        if self._place.wait(timeout_seconds=0):
            return None
        free = self._ray.available_resources()
        return Notice(
            f"A worker still waits for a place in the Ray cluster: wanted {self._pool.describe()}; "
            f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs."
        )


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Connect to Ray, and yield the module ``ray``.

    With an address, join the cluster there for the block. Without an address, start Ray on this machine, with this
    process's cores and all GPUs; after the block, end Ray's processes and remove Ray's files.

    Raises:
        MissingDependencyError: if the package ray is missing.
        ConfigError: if no cluster answers at the address, or the cluster wants a token.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Ray sets its own handlers when it is imported, and when it is started in the main thread.
    kept: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # Linux kills Ray's processes when the thread that started them ends, so the thread must live as long as Ray does.
    with handling(kept), ThreadPoolExecutor(1, initializer=_leave_interrupts) as thread:
        ray = require("ray", "The engine ray")
        folder = None if address else _short_folder()
        try:
            with _native_errors_muted():
                thread.submit(_connect, ray, address, folder).result()
            yield ray
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _leave_interrupts() -> None:
    """Block Ctrl-C, which reaches all processes of a terminal, in this thread and in the processes that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _short_folder() -> str:
    """Make a folder for Ray in the temporary folder, or in /tmp if the temporary folder's path is too long for sockets.

    Also remove the folders that killed processes have left there. Return the path of the new folder.
    """
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    parent = Path(wanted if len(os.fsencode(wanted)) <= LONGEST_FOLDER else "/tmp")
    for folder in parent.glob(f"{FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):  # not our folder, or another user's
            continue
    return tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=parent)


def _connect(ray: Any, address: str | None, folder: str | None) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": available_cores(), "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE, "_temp_dir": folder}
    try:
        if address is not None:
            _knock(address)
        ray.init(**options)
    except Exception as error:  # a plain one if Ray's processes do not start in time
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if address is None:
            raise ConfigError(
                f"Ray cannot be started on this machine ({reason}): try again when the machine is less busy, "
                "join a cluster with --address, or leave --engine out."
            ) from error
        if "AuthenticationError" in f"{type(error).__name__} {error.__cause__}":
            raise ConfigError(
                f"The Ray cluster at {address} asks for its token: set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN where Ray has not stored it."
            ) from error
        raise ConfigError(
            f"No Ray cluster can be joined at {address} ({reason}); start one with `ray start --head`, "
            "or leave --address out to start Ray on this machine."
        ) from error


def _knock(address: str) -> None:
    """Raise ``OSError`` if no process listens at ``host:port``; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


@contextlib.contextmanager
def _native_errors_muted() -> Iterator[None]:
    """Discard what Ray's compiled part prints on standard error. Ray also raises these errors, and writes them to log
    files.

    What Python prints on standard error, such as the answer to Ctrl-C, is still shown.
    """
    sys.stderr.flush()
    with open(os.dup(2), "w", buffering=1) as kept, contextlib.redirect_stderr(kept):
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept.fileno(), 2)


class Node(NamedTuple):
    """A machine of the cluster: its numbers of whole CPUs and GPUs, as Ray counts them."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Pool:
    """``workers`` actors, each with ``cpus`` CPUs and ``gpus`` GPUs, on ``machines`` different machines."""

    workers: int
    cpus: int
    gpus: int
    machines: int

    def describe(self) -> str:
        each = f"{self.cpus} CPU{'s' * (self.cpus != 1)}" + (" and a GPU" if self.gpus else "")
        return f"{self.workers} worker{'s' * (self.workers != 1)} with {each} each"


def plan_pool(nodes: Sequence[Node], device: str, threads: int | None, workers: int | None) -> Pool:
    """Plan the workers: one for each GPU; without a GPU, or if ``device`` is the CPU, one for all CPUs of each machine.

    The workers may hold all CPUs, because no Ray task that needs a CPU is used to send songs. Workers for which there
    can never be a place are an error here, because Ray would wait for a place without a message.

    Args:
        nodes: the machines of the cluster.
        device: as in ``Settings``.
        threads: number of CPUs of each worker; None to share each machine's CPUs among its workers.
        workers: largest number of workers; None for one on each GPU or machine.

    Raises:
        ConfigError: if there is no place for any worker, or for fewer workers than asked for.
    """
    on_gpus = not device.startswith("cpu") and (device != "auto" or any(node.gpus for node in nodes))
    able = [node for node in nodes if node.cpus > 0 and (node.gpus > 0 or not on_gpus)]
    if not able:
        what = "GPU" if on_gpus else "CPU"
        raise ConfigError(
            f"The Ray cluster has no {what} for a worker; add a machine that has, or choose another --device."
        )

    def places(cpus: int) -> list[int]:
        """Return how many workers with ``cpus`` CPUs each fit on each machine."""
        return [min(node.cpus // cpus, node.gpus) if on_gpus else node.cpus // cpus for node in able]

    cpus = threads or min(max(1, node.cpus // node.gpus) if on_gpus else node.cpus for node in able)
    while threads is None and workers is not None and cpus > 1 and sum(places(cpus)) < workers:
        cpus -= 1
    most = sum(places(cpus))
    pool = Pool(workers or most or 1, cpus, int(on_gpus), min(workers or most, sum(map(bool, places(cpus)))))
    if pool.workers > most:
        largest = max(node.cpus for node in able)
        advice = f"at most {most} --workers, or fewer" if most else f"at most {largest} with"
        raise ConfigError(
            f"{pool.describe()} do not fit into the Ray cluster, which has room for {most}; ask for {advice} --threads."
        )
    return pool
