"""Starting Ray on this machine or joining a cluster, quietly, and leaving nothing behind."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._extras import require
from ..errors import ConfigError
from .cores import available_cores
from .ray_pool import Node

__all__ = ["nodes_of", "ray_cluster"]

OBJECT_STORE = 256 * 2**20
"""Bytes; rows are addresses and outcomes."""

FOLDER_PREFIX = "mtfray-"
"""The owner's process number follows."""

LONGEST_FOLDER = 16
"""Bytes. Names of sockets may have 107, and Ray's part and ours take the rest."""

KNOCK_SECONDS = 10.0

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Unless the environment says otherwise."""


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected.

    With an address the cluster there is joined, and left at the end; without one, Ray is started on this machine with this
    process's cores and all GPUs, and ended with all its processes and files. A connection that was there is used and kept.

    Raises:
        MissingDependencyError: without the package ray.
        ConfigError: if no cluster answers at the address, or it wants a token.
    """
    handlers = _handlers()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        ray = _import()
        if ray.is_initialized():
            yield ray
            return
        folder = None if address else _short_folder()
        try:
            with _native_errors_muted(), _interrupts_ignored(handlers):
                _connect(ray, address, folder)
            yield ray
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        _put_back(handlers)


def _short_folder() -> str:
    """In the temporary folder, or if its name is too long for the sockets in it (as on many clusters), in the system's.

    What killed processes have left there is removed.
    """
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    parent = Path(wanted if len(os.fsencode(wanted)) <= LONGEST_FOLDER else "/tmp")
    for folder in parent.glob(f"{FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=parent)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # where signal 0 is not a question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def nodes_of(ray: Any) -> list[Node]:
    """The machines of the cluster that are alive."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(entry.get("CPU", 0)), int(entry.get("GPU", 0))) for entry in resources]


def _import() -> Any:
    require("ray.data", "The engine ray")
    return require("ray", "The engine ray")


def _connect(ray: Any, address: str | None, folder: str | None) -> None:
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        try:
            ray.init(
                address="local",
                num_cpus=available_cores(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                _temp_dir=folder,
                **common,
            )
        except Exception as error:  # plain ones, where its processes do not come up in time
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigError(
                f"Ray cannot be started on this machine ({reason}): try again when the machine is less busy, "
                "join a cluster with --address, or leave --engine out."
            ) from error
        return
    try:
        _knock(address)
        ray.init(address=address, **common)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if "AuthenticationError" in f"{type(error).__name__} {error.__cause__}":
            raise ConfigError(
                f"The Ray cluster at {address} asks for its token: set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN where Ray has not stored it."
            ) from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"No Ray cluster can be joined at {address} ({reason}); start one with `ray start --head`, "
            "or leave --address out to start Ray on this machine."
        ) from error


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody listens at ``host:port``: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


@contextlib.contextmanager
def _native_errors_muted() -> Iterator[None]:
    """Ray's compiled part greets on standard error; what goes wrong it says by exceptions, and in its log files."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _handlers() -> dict[int, Any]:
    """Signal handlers of this process; none where they cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


@contextlib.contextmanager
def _interrupts_ignored(handlers: dict[int, Any]) -> Iterator[None]:
    """A terminal's Ctrl-C reaches all processes: those that are started now are to leave it to us, as they inherit this."""
    if handlers:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        _put_back(handlers)


def _put_back(handlers: dict[int, Any]) -> None:
    """Ray sets handlers of its own when it is imported and started."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
