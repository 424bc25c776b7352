"""The kernels in Triton's interpreter, each file of tests in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
assert FILES


def interpret(file: Path, selected: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    options = ["-q", "-m", selected, "-p", "no:cacheprovider", "--durations=5"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), *options],
        cwd=file.parents[3],
        env=environment,
        capture_output=True,
        text=True,
    )
    nothing_selected = 5
    assert done.returncode in (0, nothing_selected), f"{done.stdout[-6000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(file: Path) -> None:
    interpret(file, "not slow and not gpu")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter_at_length(file: Path) -> None:
    interpret(file, "slow and not gpu")
