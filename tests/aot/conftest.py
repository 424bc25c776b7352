"""Launches that are written down instead of started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def launches() -> Iterator[list[Any]]:
    """What launchers start during a test."""
    from bench.ledger.triton_launches import recorded

    found: list[Any] = []
    with recorded(found.append):
        yield found
