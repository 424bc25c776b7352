"""A worker's process below a Ray actor, as the driver sees it, without Ray: messages arrive, and what is waited for is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metatasnet_fast.catalogue import Notice, Settings, Song, ray_engine
from metatasnet_fast.catalogue.ray_engine import ActorProcess, Pool, SeparateSongs
from metatasnet_fast.catalogue.supervised import Gone, Order

ORDER = Order(Settings("none"), "out", None, 0)


class RayError(Exception):
    pass


class FakeRay:
    """The actor's messages are ``messages``; one that is an error is raised. Without any, there is nothing to wait for."""

    def __init__(self, *messages: object) -> None:
        self.messages = list(messages)
        self.sent: list[object] = []
        self.placed = False
        self.killed: list[object] = []
        self.exceptions = SimpleNamespace(RayError=RayError)
        place = SimpleNamespace(wait=lambda timeout_seconds: self.placed)
        self.util = SimpleNamespace(
            placement_group=lambda bundles: place,
            remove_placement_group=self.killed.append,
            scheduling_strategies=SimpleNamespace(PlacementGroupSchedulingStrategy=lambda place: place),
        )

    def remote(self, **options: object) -> Any:
        actor = SimpleNamespace(
            send=SimpleNamespace(remote=self.sent.append), messages=SimpleNamespace(remote=lambda: iter(self.messages))
        )
        return lambda kind: SimpleNamespace(remote=lambda order: actor)

    def wait(self, streams: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return (streams, []) if self.messages else ([], streams)

    def get(self, message: Any) -> Any:
        if isinstance(message, RayError):
            raise message
        return message

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def kill(self, actor: object) -> None:
        self.killed.append(actor)


def process(ray: FakeRay) -> ActorProcess:
    return ActorProcess(ray, Pool(1, 2, 0, 1), ORDER)


def test_messages_go_to_the_actor_and_come_back_in_their_order() -> None:
    ray = FakeRay("first", "second", "third")
    worker = process(ray)
    songs = [Song(str(i), f"{i}.wav") for i in range(3)]
    for song in songs:
        worker.send(song)
    assert ray.sent == songs
    assert [worker.receive(0.0) for _ in range(3)] == ["first", "second", "third"]


def test_an_actor_passes_on_what_its_process_says_until_it_has_ended() -> None:
    class Actor(SeparateSongs):
        def __init__(self) -> None:
            self.said = iter(["first", None, "second", Gone("exit code 0"), "nothing more"])

        def receive(self, seconds: float) -> object:
            return next(self.said)

    assert list(Actor().messages()) == ["first", "second", Gone("exit code 0")]


def test_an_actor_that_is_lost_is_no_fault_of_the_songs() -> None:
    ray = FakeRay(RayError("The actor died.\nThe node is gone."))
    worker = process(ray)
    assert worker.receive(0.0) == Gone("RayError: The node is gone.", machine_lost=True)
    worker.kill()
    assert len(ray.killed) == 2, "the actor, and its place in the cluster"


@pytest.mark.parametrize("placed", [False, True])
def test_a_place_is_waited_for_aloud_and_a_start_is_not(monkeypatch: pytest.MonkeyPatch, placed: bool) -> None:
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.0)
    ray = FakeRay()
    ray.placed = placed
    said = process(ray).receive(0.0)
    if placed:
        assert said is None
    else:
        assert isinstance(said, Notice) and "1 worker with 2 CPUs each; free are 1 CPUs and 0 GPUs" in said.text
