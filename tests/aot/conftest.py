"""Launches that are written down instead of started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def launches(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Record the kernels that launchers start during a test, on a GPU of the test's ``capability`` if it has one."""
    from metatasnet_fast.kernels.recording import recorded

    found: list[Any] = []
    callspec = getattr(request.node, "callspec", None)
    with recorded(found.append, callspec.params.get("capability", 0) if callspec else 0):
        yield found
