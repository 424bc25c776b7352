"""A worker's process below a Ray actor, as the driver sees it, without Ray: messages arrive, and what is waited for is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from metatasnet_fast.catalogue import Notice, Settings, Song, ray_engine
from metatasnet_fast.catalogue.ray_engine import ActorProcess, Pool
from metatasnet_fast.catalogue.supervised import Gone, Order

ORDER = Order(Settings("none"), "out", None, 0)


class RayError(Exception):
    pass


class FakeRay:
    """Calls of the actor are answered by ``answer``; None leaves them without an answer."""

    def __init__(self, answer: Callable[[Sequence[object]], list[object] | None]) -> None:
        self.answer = answer
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
        exchange = SimpleNamespace(remote=lambda messages: [list(messages)])
        actor = SimpleNamespace(exchange=exchange)
        return lambda kind: SimpleNamespace(remote=lambda order: actor)

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        call = calls[0]
        if len(call) == 1:
            call.append(self.answer(call[0]))
        return ([], calls) if call[1] is None else (calls, [])

    def get(self, call: Any) -> Any:
        return call[1]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def kill(self, actor: object) -> None:
        self.killed.append(actor)


def process(ray: FakeRay) -> ActorProcess:
    return ActorProcess(ray, Pool(1, 2, 0, 1), ORDER)


def test_messages_go_to_the_actor_and_come_back_in_their_order() -> None:
    got: list[object] = []
    answers: list[list[object]] = [[], ["first", "second"], ["third"]]

    def answer(messages: Sequence[object]) -> list[object]:
        got.extend(messages)
        return answers.pop(0)

    worker = process(FakeRay(answer))
    songs = [Song(str(i), f"{i}.wav") for i in range(3)]
    worker.send(songs[0])
    assert worker.receive(0.0) is None
    worker.send(songs[1])
    worker.send(songs[2])
    assert [worker.receive(0.0) for _ in range(3)] == ["first", "second", "third"]
    assert got == songs


def test_an_actor_that_is_lost_is_no_fault_of_the_songs() -> None:
    def answer(messages: Sequence[object]) -> list[object]:
        raise RayError("The actor died.\nThe node is gone.")

    ray = FakeRay(answer)
    worker = process(ray)
    assert worker.receive(0.0) == Gone("RayError: The node is gone.", machine_lost=True)
    worker.kill()
    assert len(ray.killed) == 2, "the actor, and its place in the cluster"


@pytest.mark.parametrize("placed", [False, True])
def test_a_place_is_waited_for_aloud_and_a_start_is_not(monkeypatch: pytest.MonkeyPatch, placed: bool) -> None:
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.0)
    ray = FakeRay(lambda messages: None)
    ray.placed = placed
    said = process(ray).receive(0.0)
    if placed:
        assert said is None
    else:
        assert isinstance(said, Notice) and "1 worker with 2 CPUs each; free are 1 CPUs and 0 GPUs" in said.text
