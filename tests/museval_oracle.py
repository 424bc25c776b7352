"""The package museval, which defines the published numbers, on machines without the program ffmpeg too.

museval imports musdb for a function that no test calls; musdb imports stempeg, which raises RuntimeError without ffmpeg.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest


def museval_module(name: str = "museval") -> Any:
    """Return museval or a module of it; skip the test where it is not installed."""
    if importlib.util.find_spec("museval") is None:
        pytest.skip("museval is not installed")
    try:
        return importlib.import_module(name)
    except RuntimeError:
        sys.modules["musdb"] = types.ModuleType("musdb")
        try:
            return importlib.import_module(name)
        finally:
            del sys.modules["musdb"]
