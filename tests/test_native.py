"""The compiled module: what it reports is true, and its absence is explained."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatasnet_fast import native

ROOT = Path(__file__).resolve().parents[1]
CPUINFO = Path("/proc/cpuinfo")

needs_module = pytest.mark.skipif(native.load() is None, reason=f"{native.reason()}")


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The loader remembers its answer; these tests ask again."""
    native._load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native._load.cache_clear()


def importing_raises(error: ImportError, patch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise error

    patch.setattr(importlib, "import_module", fail)


@pytest.mark.skipif(os.environ.get("METATASNET_NATIVE") != "on", reason="the compiled module was not demanded")
def test_the_module_is_there_where_it_was_demanded() -> None:
    assert native.reason() is None


@needs_module
def test_the_module_was_built_for_this_version() -> None:
    module = native.load()
    assert module is not None and native.reason() is None
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert module.build_info()["version"] == version


@needs_module
@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="compares with Linux's list of x86 features",
)
def test_the_reported_instruction_sets_are_those_the_operating_system_lists() -> None:
    module = native.load()
    assert module is not None
    (flags,) = set(re.findall(r"^flags\s*: (.*)", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE))
    others = ("neon", "arm_")
    reported = {name: present for name, present in module.cpu_features().items() if not name.startswith(others)}
    assert reported == {name: name in flags.split() for name in reported}


def test_a_build_that_failed_is_explained(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded = tmp_path / "reason.txt"
    recorded.write_text("cannot run cmake\n", encoding="utf-8")
    forgetful.setattr(native, "_REASON_FILE", recorded)
    importing_raises(ModuleNotFoundError("absent", name="metatasnet_fast._native"), forgetful)
    assert native.load() is None
    assert "was not built (cannot run cmake); install a C++17 compiler" in str(native.reason())


def test_a_checkout_that_was_never_built_is_explained(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forgetful.setattr(native, "_REASON_FILE", tmp_path / "none.txt")
    importing_raises(ModuleNotFoundError("absent", name="metatasnet_fast._native"), forgetful)
    assert native.load() is None
    assert "never built for this Python" in str(native.reason())


def test_a_module_that_cannot_be_loaded_is_explained(forgetful: pytest.MonkeyPatch) -> None:
    importing_raises(ImportError("undefined symbol: x"), forgetful)
    assert native.load() is None
    assert "cannot be loaded (undefined symbol: x)" in str(native.reason())


def test_another_missing_module_is_not_mistaken_for_an_absent_one(forgetful: pytest.MonkeyPatch) -> None:
    importing_raises(ModuleNotFoundError("No module named 'other'", name="other"), forgetful)
    with pytest.raises(ModuleNotFoundError, match="other"):
        native.load()
