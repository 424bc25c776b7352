"""The tests of the kernels notice single faults in them: each is put into a copy of the sources, and a test must fail there."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metatasnet_fast import native

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 600
"""Of a process, after which a fault counts as noticed: it may make a kernel run without end."""


@dataclass(frozen=True)
class Fault:
    """``new`` in place of ``old``, which is in the file once; ``survives`` says why no test notices."""

    name: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    survives: str


def listed() -> Iterator[Fault]:
    text = (Path(__file__).parent / "faults.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    for block in "\n".join(lines).strip().split("\n\n"):
        name, place, *rest = block.split("\n")
        file, *tests = place.split()
        old, new, why = ("\n".join(line[1:] for line in rest if line[0] == sign) for sign in "-+!")
        yield Fault(name, file, tuple(tests), old, new, why.strip())


FAULTS = list(listed())


def test_every_fault_is_one_place_of_the_sources() -> None:
    for fault in FAULTS:
        count = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        assert count == 1, f"{fault.name}: its place is in {fault.file} {count} times"
        assert fault.old != fault.new and fault.tests
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


def test_at_most_one_in_twenty_survives() -> None:
    assert sum(bool(fault.survives) for fault in FAULTS) <= len(FAULTS) / 20


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources and their tests, to be changed."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("metatasnet_fast", "csrc", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_native*"))
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def place(copy: Path, file: str) -> Path:
    """Where the copy has a file; its kernels lie in the package."""
    return copy / "metatasnet_fast" / file if file.startswith("kernels/") else copy / file


def build(copy: Path) -> None:
    """Compile the module for CPUs, with the emulated CUDA kernels; what has not changed is kept."""
    if native.reason() is not None:
        pytest.skip(str(native.reason()))
    environment = {**os.environ, "METATASNET_NATIVE": "on", "METATASNET_CUDA": "off"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def notices(copy: Path, file: str) -> bool:
    """Return whether a test of the file fails, ends the process, or does not end."""
    command = [sys.executable, "-m", "pytest", file, "-x", "-q", "-m", "not slow"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if "/interpreted/" in file:
        pytest.importorskip("triton", reason="Triton is not installed")
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=copy,
        env=environment,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS)),
    )
    assert done.returncode <= 1, done.stdout.decode()[-2000:]  # above: pytest could not run the tests
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({file for fault in FAULTS for file in fault.tests}))
def test_without_a_fault_all_tests_pass(copy: Path, file: str) -> None:
    if "/backends/" in file:
        build(copy)
    assert not notices(copy, file)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(copy: Path, fault: Fault) -> None:
    path = place(copy, fault.file)
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    try:
        if fault.file.startswith("csrc/"):
            build(copy)
        assert any(notices(copy, file) for file in fault.tests) != bool(fault.survives)
    finally:
        path.write_text(source, encoding="utf-8")
