"""Separate songs in one process, with the model loaded once: the worker, of which every run has one or more."""

from __future__ import annotations

import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .._io import model_checksum, reporting_write_errors
from ..backends import Choice
from ..config import MetaTasNetConfig
from ..errors import BackendUnavailableError, MetaTasNetError, OutputError
from ..model import load_checkpoint
from ..model.engine import Engine
from ..precision import Precision
from ..separation import Separator
from ..separation.devices import automatic_batch_size, choose_home
from ..separation.fast_mode import default_shape
from ..separation.recording import Budget, Recording
from ..separation.result import parse_stems
from .batcher import Batcher, song_stream
from .cores import CorePlan, SongBudget, Stage, available_memory
from .destination import Contents, Destination, Staging
from .events import Listener, Notice, WorkerLoad
from .outcome import Outcome
from .pipeline import SongPipeline
from .settings import Identity, Settings, Song
from .supervised import Order, Ready

__all__ = ["Worker", "find_identity", "main"]

DEFERRED_SECONDS = 0.1
"""Seconds after which songs that another run is working on are tried again."""

LOAD_SECONDS = 1.0
"""Seconds between two reports of the load, and between two checks that the device still works."""

WINDOW_COPIES = 3
"""Number of float32 copies of a window's stems that are in memory at once: stitched, in the resampler's buffer,
resampled."""


def find_identity(settings: Settings) -> Identity:
    """Load the model, and return the identity of outputs with these settings, without using the device.

    Raises:
        MetaTasNetError: if the model cannot be loaded, or lacks a stem of the settings.
        ConfigError: if the precision is unknown.
    """
    network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    automatic = settings.dtype == "auto"
    precision = Precision.default(torch.device(device)) if automatic else Precision.parse(settings.dtype)
    return _identity(settings, network.config, model_checksum(network.config, network.state_dict()), precision)


def _identity(settings: Settings, config: MetaTasNetConfig, checksum: str, precision: Precision) -> Identity:
    """Return the identity of outputs. The model's name is recorded in it, but decides nothing.

    Args:
        checksum: checksum of the weights and the configuration.
    """
    window, recipe = default_shape(config), parse_stems(settings.stems, config.instruments)
    name = Path(settings.model).name if os.path.exists(settings.model) else settings.model
    values = {
        "mode": "fast",
        "window": [window.window, window.context, window.fade],
        "precision": precision.value,
        "stems": {output: list(parts) for output, parts in recipe.items()},
        "format": settings.format,
        "subtype": settings.subtype,
        "mixture_consistency": settings.mixture_consistency,
    }
    return Identity(name, checksum, values)


class Worker:
    """A worker that separates songs in this process, many at once.

    Use it in a ``with`` statement. ``run`` may be called several times. A crash of a decoder ends this process; a
    ``SupervisedWorker`` survives it.

    Args:
        settings: all options.
        destination: a folder or fsspec URI.
        engine: replacement for the network, for tests, on the CPU; it has ``config`` and ``separate(mixes, wanted)``.
        listener: function that gets ``SongStarted``, ``SongEnded``, ``Notice`` and ``WorkerLoad``, from several
            threads.
        stop: when set, no further song is begun; songs in flight are finished.
        number: number of this worker in its events.
        cores: plan by which the cores are shared, for tests; None for the plan that suits the device.
        contents: folders of contents that are done at the destination, see :class:`Contents`.

    Raises:
        MetaTasNetError: if the model cannot be loaded, or the device or backend cannot be used.
        OutputError: if the destination cannot be written to.
        SongError: if the destination was removed or unmounted since its mark was read.
    """

    def __init__(
        self,
        settings: Settings,
        destination: str | Destination,
        engine: Engine | None = None,
        listener: Listener = lambda event: None,
        stop: threading.Event | None = None,
        number: int = 0,
        cores: CorePlan | None = None,
        contents: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.settings, self.listen, self.number = settings, listener, number
        self.destination = Destination(destination) if isinstance(destination, str) else destination
        self.stop, self.contents = stop or threading.Event(), Contents(contents)
        self._threads_before = torch.get_num_threads()
        if engine is None:
            network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
            separator = Separator(network, settings.device, settings.backend, settings.dtype)
            backend, self.device, precision = separator.backend, separator.device, separator.precision
            checksum = model_checksum(network.config, separator.network.state_dict())
            engine = separator.network.engine(Choice.parse(backend, precision.value))
        else:
            backend, self.device, precision = type(engine).__name__, torch.device("cpu"), Precision.float32
            checksum = f"{backend} {engine.config.to_dict()}"
        self.made_by = {"backend": backend, "device": str(self.device), "precision": precision.value}
        self.recipe = parse_stems(settings.stems, engine.config.instruments)
        self.identity = _identity(settings, engine.config, checksum, precision)
        self.window = default_shape(engine.config)
        self.cores = cores or CorePlan.choose(self.device, settings.threads, settings.songs_in_flight)
        size = settings.batch_size or 1
        if settings.batch_size is None and isinstance(engine, Engine):
            torch.set_num_threads(self.cores.device_threads)
            size = automatic_batch_size(engine, self.window.window, self.device)
        self.engine = engine
        self.batcher = Batcher(engine, size, lambda text: self.listen(Notice(text)), self.device, self.cores)
        memory = available_memory() // 4 if settings.memory is None else settings.memory
        self.memory = Budget(memory)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
        self._device_memory = free // 4 // self.cores.songs
        # Songs need this memory at the same time, while their windows are stitched.
        self.separate = Stage(self.cores.songs, free // 8 or memory)
        self.read, self.write = Stage(self.cores.read), Stage(self.cores.write)
        advice = "choose another destination, or change its permissions"
        with reporting_write_errors(self.destination.uri, OutputError, advice):
            self.destination.check()
            # This step comes last: if a later one failed, the folder would stay behind.
            self.staging = Staging(self.destination.storage)
        self._began = time.perf_counter()

    def process(self, songs: Iterable[Song]) -> list[Outcome]:
        """Separate songs as :meth:`run` does; those that another run was working on are tried again at the end.

        Return the outcomes in the order in which the songs ended.
        """
        outcomes: list[Outcome] = []
        deferred: list[Song] = []
        self.run(songs, deferred.append, outcomes.append)
        while deferred and not self.stop.wait(DEFERRED_SECONDS):
            songs, deferred = deferred, []
            self.run(songs, deferred.append, outcomes.append)
        return outcomes

    def run(
        self,
        songs: Iterable[Song],
        defer: Callable[[Song], object],
        ended: Callable[[Outcome], object] = lambda outcome: None,
    ) -> None:
        """Separate songs until none is left or the worker is stopped.

        Args:
            songs: the next song is taken when a place becomes free, by one thread at a time, but by different threads.
            defer: function that takes back a song that another run is working on; this song has no outcome here.
            ended: function that gets every outcome, from several threads.

        Raises:
            BackendUnavailableError: if the device takes no further work from this process; songs in flight have no outcome.
        """
        source, reading, leave = iter(songs), threading.Lock(), threading.Event()
        batcher, pipeline = self.batcher, SongPipeline(self)

        def following() -> Song | None:
            with reading:
                left = leave.is_set() or self.stop.is_set() or batcher.lost is not None
                return None if left else next(source, None)

        def work() -> None:
            try:
                with song_stream(self.device):
                    while (song := following()) is not None:
                        outcome = pipeline.run(song, defer)
                        if outcome is not None:
                            ended(outcome)
            finally:
                leave.set()  # no more songs, or an error

        pool = ThreadPoolExecutor(self.cores.songs, "song", lambda: self.cores.enter_thread(network=False))
        working = [pool.submit(work) for _ in range(self.cores.songs)]
        try:
            while batcher.lost is None and wait(working, LOAD_SECONDS).not_done:
                self.listen(self.load())
        finally:
            leave.set()
            pool.shutdown(wait=batcher.lost is None)
        if batcher.lost is not None:
            raise BackendUnavailableError(f"The device takes no further work ({batcher.lost}): start another process.")
        for future in working:
            future.result()
        batcher.settle()
        self.listen(self.load())

    def load(self) -> WorkerLoad:
        """Return the present load of the worker and its stages."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return WorkerLoad(
            worker=self.number,
            wall_seconds=round(time.perf_counter() - self._began, 3),
            stages={
                "read": self.read.load(),
                "separate": self.separate.load(),
                "write": self.write.load(),
                "device": self.batcher.load(),
            },
            windows_done=self.batcher.windows_done,
            batch_size=self.batcher.batch_size,
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_memory=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )

    def describe(self) -> str:
        made = self.made_by
        return (
            f"{self.identity.model_name}: backend {made['backend']}, device {made['device']}, {made['precision']}; "
            f"batches of {self.batcher.batch_size} windows; {self.cores.describe()}"
        )

    def home(self, recording: Recording, attempt: int) -> tuple[torch.device, SongBudget]:
        """Return the device that keeps a song's signals, and the budget of memory for these signals.

        The signals stay on the GPU if they fit there and no attempt at the song failed before, else they are on the
        CPU.
        """
        device, stems = self.device if attempt == 1 else torch.device("cpu"), len(self.engine.config.instruments)
        home = choose_home(device, recording, stems, self._device_memory)
        return home, SongBudget(self.memory if home.type == "cpu" else Budget(None))

    def working_memory(self, recording: Recording) -> int:
        """Return the bytes of memory that a recording needs while its windows are stitched."""
        config = self.engine.config
        samples = self.window.window * config.W * max(recording.sample_rate, config.output_rate) // config.sampling_rate
        if recording.samples is not None:
            samples = min(samples, recording.samples)
        return WINDOW_COPIES * 4 * len(config.instruments) * recording.channels * samples

    def close(self) -> None:
        """End the device thread, and remove unfinished files."""
        self.batcher.close()
        self.staging.close()
        torch.set_num_threads(self._threads_before)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def main() -> int:
    """Run a worker as the process of a ``SupervisedWorker``. The last argument of the command is the descriptor of the
    pipe between the two.

    This process receives an Order, then Songs, and at last None: then it begins no further song, finishes the songs in
    flight, and ends. It sends Ready, or the error that prevents work; then events, and the songs that another run is
    working on.

    If the pipe ends without None, the parent has ended, and this process ends at once. The next run removes the staging
    folder with the unfinished files.
    """
    faulthandler.enable()
    pipe, sending, stop = Connection(int(sys.argv[-1])), threading.Lock(), threading.Event()
    songs: queue.SimpleQueue[Song | None] = queue.SimpleQueue()

    def send(message: object) -> None:
        try:
            with sending:
                pipe.send(message)
        except OSError:
            os._exit(1)

    def receive() -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            os._exit(1)

    def begin_no_more(*signalled: object) -> None:
        stop.set()
        songs.put(None)

    def read() -> None:
        while (song := receive()) is not None:
            songs.put(song)
        begin_no_more()

    order: Order = receive()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C, too, and tells this process what to do
    signal.signal(signal.SIGTERM, begin_no_more)
    threading.Thread(target=read, daemon=True).start()  # notices the end of the parent also during loading
    try:
        destination = Destination(order.destination, token=order.token)
        worker = Worker(
            order.settings, destination, listener=send, stop=stop, number=order.number, contents=order.contents
        )
    except (MetaTasNetError, OSError) as error:
        send(MetaTasNetError(str(error)))
        return 1
    try:
        with worker:
            send(Ready(worker.cores.songs, worker.identity.key))
            send(Notice(worker.describe()))
            worker.run(iter(songs.get, None), send)
    except BackendUnavailableError as error:  # the parent reports the last line that is printed as the reason
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is closed, and a normal exit of the interpreter would take half a second more
