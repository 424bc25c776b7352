"""What runs in a Ray actor: the supervised worker, fed by several calls at once so that it never runs dry between two."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ..errors import MetaTasNetError
from .outcome import Outcome
from .ray_board import Pinner, board_exchange
from .settings import Settings
from .song import Song

__all__ = ["REFUSED", "SeparateSongs", "SongService"]

REFUSED = "refused"
"""Key of a row that has no outcome but the reason why the run cannot go on."""


class AnyWorker(Protocol):
    """A worker, supervised or not."""

    def process(self, songs: Iterator[Song]) -> Iterator[Outcome]: ...

    def close(self) -> None: ...


class SongService:
    """Serves calls from several threads with one worker.

    Args:
        open_worker: is called in the service's own thread when the first song comes, and anew after a worker has failed.
        stop: when set, the worker begins no further song.
    """

    def __init__(self, open_worker: Callable[[], AnyWorker], stop: threading.Event) -> None:
        self._open_worker = open_worker
        self._stop = stop
        self._waiting: deque[Song] = deque()
        self._futures: dict[str, Future[Outcome | None]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="service", daemon=True)
        self._thread.start()

    def separate(self, songs: Sequence[Song]) -> list[Outcome]:
        """The outcomes of songs; those that were not begun before the run was stopped have none.

        Raises whatever keeps the worker from working.
        """
        with self._changed:
            futures = [self._futures.setdefault(song.id, Future()) for song in songs]
            self._waiting.extend(songs)
            self._changed.notify_all()
        return [outcome for outcome in (future.result() for future in futures) if outcome is not None]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        worker: AnyWorker | None = None
        while self._wait():
            try:
                worker = worker or self._open_worker()
                for outcome in worker.process(_Waiting(self._waiting)):
                    self._settle(outcome.id, outcome)
            except Exception as error:
                self._fail(error)
                if worker is not None:
                    worker.close()
                worker = None
            self._settle_the_rest()
        if worker is not None:
            worker.close()

    def _wait(self) -> bool:
        """For a song; false when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            return not self._closed

    def _settle(self, id: str, outcome: Outcome | None) -> None:
        with self._changed:
            future = self._futures.pop(id, None)
        if future is not None:
            future.set_result(outcome)

    def _settle_the_rest(self) -> None:
        """The worker has returned: songs that it took and said nothing about will have no outcome."""
        with self._changed:
            if self._stop.is_set():
                self._waiting.clear()
            waiting = {song.id for song in self._waiting}
            left = [id for id in self._futures if id not in waiting]
        for id in left:
            self._settle(id, None)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            futures = list(self._futures.values())
            self._futures.clear()
            self._waiting.clear()
        for future in futures:
            future.set_exception(error)


class _Waiting(Iterator[Song]):
    """The songs that wait just now: after its end it may have more, when a call has brought some."""

    def __init__(self, songs: deque[Song]) -> None:
        self._songs = songs

    def __next__(self) -> Song:
        try:
            return self._songs.popleft()
        except IndexError:
            raise StopIteration from None


class SeparateSongs:
    """For ``Dataset.map_batches``: rows with ``song`` (JSON) in, rows with ``outcome`` (JSON) out, waveforms never."""

    def __init__(self, settings: dict[str, Any], destination: str, board: Any, grace: float) -> None:
        import ray

        self._settings, self._destination, self._grace = Settings.from_dict(settings), destination, grace
        self._board = board
        self._number = int(ray.get(board.join.remote()))
        self._stop = threading.Event()
        self._pinner = Pinner(board_exchange(board), self._stop)
        self._service = SongService(self._open_worker, self._stop)

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        songs = [Song.from_dict(json.loads(text)) for text in batch["song"].to_pylist()]
        try:
            rows = [json.dumps(outcome.to_dict()) for outcome in self._service.separate(songs)]
        except MetaTasNetError as error:
            # As a row: Ray would wrap an exception, and tell how to retry what cannot succeed.
            rows = [json.dumps({REFUSED: str(error)})]
        self._pinner.flush()
        return pyarrow.table({"outcome": pyarrow.array(rows, pyarrow.string())})

    def _open_worker(self) -> AnyWorker:
        from .supervised import SupervisedWorker

        return SupervisedWorker(
            self._settings, self._destination, self._pinner, self._stop, number=self._number, grace=self._grace
        )

    def __del__(self) -> None:
        # Ray deletes it when the actor ends in peace. The worker's last load is part of what the run reports.
        self._service.close()
        self._pinner.close()
        self._board.leave.remote()
