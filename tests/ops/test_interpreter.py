"""The kernels in Triton's interpreter, in processes of their own, two at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def interpret(file: Path, selected: str) -> str | None:
    """Run one file of tests; what it printed if it failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(file),
        "-q",
        "-m",
        selected,
        "-p",
        "no:cacheprovider",
        "--durations=5",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True)
    return None if done.returncode in (0, 5) else f"{file.name}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def check(selected: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    files = sorted(FOLDER.glob("test_*.py"))
    assert files
    with ThreadPoolExecutor(2) as pool:
        failures = [text for text in pool.map(lambda file: interpret(file, selected), files) if text]
    assert not failures, "\n".join(failures)


def test_kernels_in_the_interpreter() -> None:
    check("not slow and not gpu")


@pytest.mark.slow
def test_kernels_in_the_interpreter_at_length() -> None:
    check("slow and not gpu")
