"""A cache from the songs of a folder, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metatasnet_fast.training.data.prepare import Preparation, prepare
from metatasnet_fast.training.data.sources import find_stems

RATES = (8000, 16000)


def run(songs: Path, out: Path, held_out: tuple[str, ...] = (), **options: Any) -> Preparation:
    return prepare(find_stems(songs, held_out), out, rates=RATES, **options)


def statuses(result: Preparation) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in result.outcomes}


def contents(cache: Path) -> dict[str, bytes]:
    """Everything in a cache but its lock."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
