"""A real S3 server on loopback: requests are counted, and some are refused, cut off or slow.

Needs moto[server] and s3fs, which `make env` does not install: `pip install "moto[server]" s3fs`.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast.catalogue import Failure, Outcome, Song, Status
from metatasnet_fast.catalogue import pipeline as pipeline_module
from metatasnet_fast.catalogue.destination import Destination
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.outcome import Result, is_result
from metatasnet_fast.catalogue.settings import song_folder
from metatasnet_fast.catalogue.survey import Finding, survey, verify
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, write_song
from .stand_ins import GatedDevice, SleepingDevice

server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

NOWHERE = Path("no model")
ERRORS = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


@dataclass
class Store:
    """The server; ``fault`` gets each request's kind and key, and says with which status it is refused (-1: cut off)."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    fault: Callable[[str, str], int | None] = lambda kind, key: None
    seconds: float = 0.0
    """That each request takes longer."""
    putting: int = 0
    most_puts: int = 0
    """That were under way at the same time."""

    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.requests)

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        kind, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        if kind == "GET" and "list-type" in query:
            kind = "LIST"
        key = urllib.parse.unquote(environ["PATH_INFO"])
        self.requests.append((kind, key))
        self.putting += kind == "PUT"
        self.most_puts = max(self.most_puts, self.putting)
        time.sleep(self.seconds)
        self.putting -= kind == "PUT"
        status = self.fault(kind, key)
        if status == -1:
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            raise ConnectionResetError
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<?xml version='1.0'?><Error><Code>{ERRORS[status]}</Code><Message>injected</Message></Error>"
            start(f"{status} X", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body.encode() if kind != "HEAD" else b""]
        return self.application(environ, start)

    def __post_init__(self) -> None:
        self.application = server.DomainDispatcherApplication(server.create_backend_app)


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *words: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    import fsspec

    found = Store()
    listening = make_server("127.0.0.1", 0, found, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    s3 = fsspec.filesystem("s3")
    s3.clear_instance_cache()
    s3 = fsspec.filesystem("s3")
    for bucket in ("in", "out"):
        s3.mkdir(f"{bucket}-bucket")
    yield found
    found.fault, found.seconds = (lambda kind, key: None), 0.0
    for bucket in ("in", "out"):
        s3.rm(f"{bucket}-bucket", recursive=True)
    s3.clear_instance_cache()
    listening.shutdown()
    thread.join()


@pytest.fixture
def songs(store: Store, tmp_path: Path) -> list[Song]:
    import fsspec

    s3 = fsspec.filesystem("s3")
    for number in range(6):
        path = write_song(tmp_path / f"{number}.wav", 0.4, seed=number)
        s3.put_file(str(path), f"in-bucket/{number}.wav")
    store.requests.clear()
    return [Song(f"{number}", f"s3://in-bucket/{number}.wav") for number in range(6)]


def run(songs: list[Song], engine: SleepingDevice | None = None, **more: Any) -> dict[str, Outcome]:
    with Worker(settings(NOWHERE, **more), "s3://out-bucket/stems", engine=engine or SleepingDevice()) as worker:
        return {outcome.id: outcome for outcome in worker.process(songs)}


def whole() -> list[str]:
    """The songs that are whole at the destination, where nothing else is."""
    checked = list(verify(Destination("s3://out-bucket/stems")))
    assert not [found for found in checked if isinstance(found, Finding)]
    return sorted(found.id for found in checked if isinstance(found, Result))


def test_a_fresh_song_takes_eight_requests(store: Store, songs: list[Song]) -> None:
    assert {outcome.status for outcome in run(songs).values()} == {Status.done}
    counts = store.counts()
    print(dict(counts))
    assert counts["PUT"] == 5 * len(songs), "four stems and a result"
    assert sum(counts.values()) <= 8 * len(songs), counts
    assert whole() == [song.id for song in songs]


def test_a_run_over_done_songs_asks_for_none_of_them(store: Store, songs: list[Song], model: Path) -> None:
    from metatasnet_fast.catalogue.inputs import read_manifest

    found = read_manifest("s3://in-bucket")
    time.sleep(2.1)  # so old that their versions can be relied on
    first = run_local(found, settings(model), "s3://out-bucket/stems")
    assert first.progress.done == len(songs)
    store.requests.clear()
    again = run_local(read_manifest("s3://in-bucket"), settings(model), "s3://out-bucket/stems")
    counts = store.counts()
    print(dict(counts))
    assert again.progress.skipped == len(songs)
    assert counts["HEAD"] == 0 and counts["PUT"] == 0
    # Listings of the manifest, of the songs by the beginnings of their folders, and of the ledger, which is read.
    assert counts["LIST"] <= len(songs) + 8 and counts["GET"] <= 2
    store.requests.clear()
    assert survey(Destination("s3://out-bucket/stems")).done == len(songs)
    assert store.counts()["GET"] <= 2


@pytest.mark.parametrize("status", [500, 503, -1])
def test_requests_that_fail_now_and_then_lose_nothing(store: Store, songs: list[Song], status: int) -> None:
    number = iter(range(10**6))
    store.fault = lambda kind, key: status if kind in ("PUT", "GET") and next(number) % 7 == 3 else None
    device = SleepingDevice()
    outcomes = run(songs, device)
    store.fault = lambda kind, key: None
    assert {outcome.status for outcome in outcomes.values()} == {Status.done}
    assert sum(windows for windows, _ in device.batches) == 2 * len(songs), "a song was separated twice"
    assert whole() == [song.id for song in songs]


def test_a_store_that_takes_nothing_separates_each_song_once(store: Store, songs: list[Song]) -> None:
    store.fault = lambda kind, key: 403 if kind == "PUT" else None
    device = SleepingDevice()
    outcomes = run(songs, device, attempts=2)
    assert {outcome.failure for outcome in outcomes.values()} == {Failure.write}
    assert sum(windows for windows, _ in device.batches) == 2 * len(songs), "a song was separated twice"


def test_an_input_that_may_not_be_read_is_forbidden_and_named(store: Store, songs: list[Song]) -> None:
    store.fault = lambda kind, key: 403 if key.endswith("/2.wav") else None
    outcomes = run(songs)
    assert outcomes["2"].failure is Failure.forbidden and "s3://in-bucket/2.wav" in str(outcomes["2"].error)
    assert {outcome.status for id, outcome in outcomes.items() if id != "2"} == {Status.done}


def test_verifying_goes_on_past_objects_that_are_refused(store: Store, songs: list[Song]) -> None:
    run(songs)
    store.fault = lambda kind, key: 403 if key.endswith("bass.flac") and kind == "GET" else None
    found = list(verify(Destination("s3://out-bucket/stems")))
    assert len(found) == len(songs)
    assert all(isinstance(item, Finding) and "bass cannot be read" in item.problem for item in found)


def test_the_stems_of_a_song_but_the_first_are_put_at_the_same_time(store: Store, songs: list[Song]) -> None:
    store.seconds = 0.3
    outcomes = run(songs[:1])
    assert outcomes["0"].status is Status.done
    puts = [key for kind, key in store.requests if kind == "PUT"]
    assert is_result(puts[-1].rpartition("/")[2]) and len(puts) == 5
    assert store.most_puts == 3


@pytest.mark.parametrize("killed", [False, True])
def test_two_runs_that_publish_a_song_at_the_same_time_do_not_mix_its_stems(
    store: Store, songs: list[Song], monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(pipeline_module, "CONTESTED_SECONDS", 3.0)
    device = GatedDevice()
    found: list[Outcome] = []
    threads = [threading.Thread(target=lambda: found.extend(run(songs[:1], device).values())) for _ in range(2)]
    for thread in threads[: 1 if killed else 2]:
        thread.start()
    deadline = time.monotonic() + 30
    while store.counts()["LIST"] < (1 if killed else 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    if killed:  # another run put its first stem, and no more
        place = f"out-bucket/stems/{song_folder('0')}"
        import fsspec

        fsspec.filesystem("s3").pipe_file(f"{place}/bass.flac", b"of a killed run")
    device.gate.set()
    for thread in threads[: 1 if killed else 2]:
        thread.join()
    statuses = sorted(outcome.status.value for outcome in found)
    assert statuses == (["done"] if killed else ["done", "skipped"])
    assert whole() == ["0"]
    puts = [key for kind, key in store.requests if kind == "PUT" and key.endswith("drums.flac")]
    assert len(puts) == 1, "both put their stems"
