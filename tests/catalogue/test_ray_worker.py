"""The board of a Ray run and a worker's end of it, without Ray: no song is lost, and no worker goes on after its driver."""

from __future__ import annotations

import threading

from metatasnet_fast.catalogue import Event, Notice, Outcome, Song, SongEnded, Status
from metatasnet_fast.catalogue.ray_engine import MOST_SONGS, Board, Feed


def songs(count: int) -> list[Song]:
    return [Song(f"{i:03}", f"{i}.mp3") for i in range(count)]


def ended(song: Song) -> SongEnded:
    return SongEnded(Outcome(song.id, song.uri, Status.done, "key"))


def feed_of(board: Board, worker: int) -> Feed:
    board.join(worker)
    return Feed(lambda events, hungry: board.exchange(worker, events, hungry), threading.Event())


def test_workers_share_the_songs_in_their_order() -> None:
    board, given = Board(songs(100), 2), songs(100)
    feeds = [feed_of(board, worker) for worker in range(2)]
    found: list[list[Song]] = [[], []]
    for _ in range(30):
        for feed, own in zip(feeds, found, strict=True):
            own.append(next(feed))
    for feed, own in zip(feeds, found, strict=True):
        own.extend(feed)
        feed.close()
    assert sorted(song.id for own in found for song in own) == [song.id for song in given]
    assert all(own == sorted(own, key=lambda song: song.id) and len(own) > 20 for own in found)


def test_a_worker_that_comes_again_gets_the_songs_that_it_had_first() -> None:
    board, all_songs = Board(songs(40), 1), songs(40)
    board.join(0)
    taken, _ = board.exchange(0, [], True)
    assert 1 < len(taken) <= MOST_SONGS
    board.exchange(0, [ended(taken[0])], False)
    board.join(0)
    again = list(feed_of(board, 0))
    assert again == all_songs[1:]


def test_no_worker_hoards_the_last_songs() -> None:
    board = Board(songs(4), 4)
    for worker in range(4):
        board.join(worker)
        assert len(board.exchange(worker, [], True)[0]) == 1


def test_events_reach_the_driver_in_their_order() -> None:
    board = Board([], 1)
    feed = feed_of(board, 0)
    said: list[Event] = [Notice(str(number)) for number in range(50)]
    for event in said:
        feed.hear(event)
    feed.close()
    assert board.take() == (said, 1)
    assert board.take() == ([], 1)


def test_a_run_that_is_being_stopped_gives_out_nothing() -> None:
    board, stop = Board(songs(40), 1), threading.Event()
    board.join(0)
    board.stop()
    feed = Feed(lambda events, hungry: board.exchange(0, events, hungry), stop)
    assert list(feed) == [] and stop.is_set()
    feed.close()


def test_workers_stop_when_the_driver_is_gone() -> None:
    def exchange(events: list[Event], hungry: bool) -> tuple[list[Song], bool]:
        raise ConnectionError("the actor died")

    stop = threading.Event()
    feed = Feed(exchange, stop)
    assert next(feed, None) is None and stop.is_set()
    feed.close()
