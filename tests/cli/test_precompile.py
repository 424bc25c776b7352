"""``metatasnet-fast precompile``."""

from __future__ import annotations

from pathlib import Path

import pytest

from metatasnet_fast import MultiTasNet
from metatasnet_fast.model.programs import programs
from metatasnet_fast.precision import Precision
from tests.support import TINY

from .conftest import Command

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "sm_70"], "sm_70 is no target: name a compute capability from 8.0 on"),
        (["--target", "gfx942"], "gfx942 is no target"),
        (["--target", "sm_90", "--dtype", "float16"], "The backend triton has no float16"),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence(command: Command, options: list[str], sentence: str) -> None:
    outcome = command("precompile", *options)
    assert outcome.code == 2 and sentence in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.slow
def test_all_programs_are_in_the_cache(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    MultiTasNet(TINY).save_pretrained(tmp_path / "model")
    outcome = command("precompile", "--model", tmp_path / "model", "--target", "sm_90", "--json")
    cubins = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.cubin")}
    assert outcome.code == 0 and f'"programs": {len(programs(TINY, Precision.bfloat16, 90, False))}' in outcome.out
    assert cubins
    command("precompile", "--model", tmp_path / "model", "--target", "sm_90")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.cubin")} == cubins
