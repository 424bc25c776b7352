"""Settings of every test run, memory that is given back, and the skipped tests counted by reason."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from metatasnet_fast.audio.resample import _banks
from tests.support import trim_memory

# The networks under test are small: threads would wait for each other longer than they compute.
torch.set_num_threads(1)

# Property tests draw the same examples in every run, as Hypothesis itself does where CI is set.
with contextlib.suppress(ImportError):  # a machine that only runs the tests for GPUs may lack it
    from hypothesis import settings

    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes: at the end the processes would wait for them."""
    items.sort(key=lambda item: item.path.name != "test_interpreter.py")


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """Free what the tests of a module leave, and what is kept for the next: networks, recordings, filters."""
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("tests."):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
    _banks.clear()
    gc.collect()
    trim_memory()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Say in the last lines how many tests were skipped, and for which reasons."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
