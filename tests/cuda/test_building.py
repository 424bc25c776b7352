"""Whether the CUDA kernels are compiled is decided by METATASNET_CUDA, and a compiler that fails costs only them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, on a machine with an nvcc and without settings."""
    spec = importlib.util.spec_from_file_location("metatasnet_fast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("METATASNET_CUDA", "METATASNET_CUDA_ARCHITECTURES", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda program: f"/somewhere/{program}")
    return module


def attempts(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, failing: str) -> list[list[str]]:
    """The options of every build, of which those with ``failing`` among them fail."""
    made: list[list[str]] = []

    def build(options: list[str], prefix: Path) -> None:
        made.append(options)
        if failing in options:
            raise setup.BuildError('nvcc fatal: "sm_80"; not $known')

    monkeypatch.setattr(setup, "build_with", build)
    setup.build_native(Path("nowhere"))
    return made


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_the_choice_is_handed_to_cmake(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("METATASNET_CUDA", mode)
    monkeypatch.setenv("METATASNET_CUDA_ARCHITECTURES", "90a-real")
    (options,) = attempts(setup, monkeypatch, failing="nothing")
    assert f"-DMETATASNET_CUDA={mode}" in options and "-DMETATASNET_CUDA_ARCHITECTURES=90a-real" in options


def test_a_compiler_that_fails_costs_only_the_cuda_kernels(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = attempts(setup, monkeypatch, failing="-DMETATASNET_CUDA=auto")
    assert "-DMETATASNET_CUDA=off" in second
    (reason,) = (option for option in second if option.startswith("-DMETATASNET_CUDA_REASON="))
    assert "could not be compiled: nvcc fatal" in reason and not set('"$;') & set(reason)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_was_demanded_is_not_replaced(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("METATASNET_CUDA", mode)
    with pytest.raises(setup.BuildError, match="nvcc fatal"):
        attempts(setup, monkeypatch, failing=f"-DMETATASNET_CUDA={mode}")


def test_without_nvcc_nothing_is_built_twice(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda program: None)
    with pytest.raises(setup.BuildError):
        attempts(setup, monkeypatch, failing="-DMETATASNET_CUDA=auto")


def test_an_unknown_choice_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METATASNET_CUDA", "perhaps")
    with pytest.raises(SystemExit, match="METATASNET_CUDA=perhaps"):
        setup.build_native(Path("nowhere"))
