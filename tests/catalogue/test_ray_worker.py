"""The service in a Ray actor, without Ray: many calls, one worker that never runs dry, and no call that waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from metatasnet_fast.catalogue import Event, Notice, Outcome, Song, SongEnded, SongStarted, Status
from metatasnet_fast.catalogue.ray_board import MOST_EVENTS, Board, Pinner
from metatasnet_fast.catalogue.ray_worker import AnyWorker, SongService
from metatasnet_fast.errors import MetaTasNetError


def songs(*ids: str) -> list[Song]:
    return [Song(id, f"{id}.mp3") for id in ids]


class Plain:
    """Takes up to three songs at once, as a supervised worker does, and stops when told to."""

    def __init__(self, stop: threading.Event, seconds: float = 0.0) -> None:
        self.stop, self.seconds = stop, seconds
        self.most = 0
        self.closed = False

    def process(self, songs: Iterator[Song]) -> Iterator[Outcome]:
        taken: list[Song] = []
        while not self.stop.is_set():
            while len(taken) < 3 and (song := next(songs, None)) is not None:
                taken.append(song)
            if not taken:
                return
            self.most = max(self.most, len(taken))
            time.sleep(self.seconds)
            if self.stop.is_set():
                return
            song = taken.pop(0)
            yield Outcome(song.id, song.uri, Status.done, "key")

    def close(self) -> None:
        self.closed = True


def test_every_call_gets_the_outcomes_of_its_songs_in_their_order() -> None:
    stop = threading.Event()
    worker = Plain(stop, 0.001)
    service = SongService(lambda: worker, stop)
    calls = [[f"{call}-{i}" for i in range(5)] for call in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda ids: [o.id for o in service.separate(songs(*ids))], calls))
    service.close()
    assert found == calls and worker.closed


def test_calls_of_single_songs_keep_the_worker_supplied() -> None:
    stop = threading.Event()
    worker = Plain(stop, 0.02)
    service = SongService(lambda: worker, stop)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: service.separate(songs(str(i))), range(12)))
    service.close()
    assert worker.most == 3


def test_a_stopped_run_leaves_no_call_waiting() -> None:
    stop = threading.Event()
    service = SongService(lambda: Plain(stop, 0.05), stop)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(service.separate, songs(*(f"{call}-{i}" for i in range(4)))) for call in range(4)]
        time.sleep(0.12)
        stop.set()
        found = [len(call.result(timeout=5)) for call in calls]
    assert 1 <= sum(found) < 16
    assert service.separate(songs("late")) == []
    service.close()


def test_an_error_of_the_worker_reaches_every_call_and_the_next_has_another_worker() -> None:
    stop = threading.Event()
    workers: list[AnyWorker] = []

    def open_worker() -> AnyWorker:
        workers.append(Plain(stop))
        if len(workers) == 1:
            raise MetaTasNetError("There is no checkpoint; name one.")
        return workers[-1]

    service = SongService(open_worker, stop)
    with pytest.raises(MetaTasNetError, match="no checkpoint"):
        service.separate(songs("a", "b"))
    assert [outcome.id for outcome in service.separate(songs("a", "b"))] == ["a", "b"]
    service.close()


def test_the_board_numbers_workers_and_keeps_what_is_for_display_only() -> None:
    board, stop = Board(), threading.Event()
    assert [board.join(), board.join()] == [0, 1]
    pinner = Pinner(board.exchange, stop)
    pinner(SongStarted("a", "a.mp3"))
    pinner(SongEnded(Outcome("a", "a.mp3", Status.done, "key")))
    pinner(Notice("Memory ran out."))
    pinner.close()
    board.leave()
    events, joined, left = board.take()
    assert [type(event) for event in events] == [SongStarted, Notice] and (joined, left) == (2, 1)
    assert board.take() == ([], 2, 1)


def test_the_board_holds_only_so_much_if_nobody_looks() -> None:
    board = Board()
    for number in range(3):
        board.exchange([Notice(str(number))] * MOST_EVENTS)
    events, _, _ = board.take()
    assert len(events) == MOST_EVENTS and isinstance(events[0], Notice) and events[0].text == "2"


def test_workers_stop_when_the_driver_says_so() -> None:
    board, stop = Board(), threading.Event()
    board.stop()
    Pinner(board.exchange, stop).close()
    assert stop.is_set()


def test_workers_stop_when_the_driver_is_gone() -> None:
    def exchange(events: list[Event]) -> bool:
        raise ConnectionError("the actor died")

    stop = threading.Event()
    Pinner(exchange, stop).close()
    assert stop.is_set()
