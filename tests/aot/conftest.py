"""Launches that are written down instead of started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def launches(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Record the kernels that launchers start during a test, as on the test's ``target`` if it has one."""
    from metatasnet_fast.kernels.recording import recorded

    from .compiling import TARGETS

    found: list[Any] = []
    callspec = getattr(request.node, "callspec", None)
    target = callspec.params.get("target") if callspec else None
    with TARGETS[target].recorded(found.append) if target else recorded(found.append):
        yield found
