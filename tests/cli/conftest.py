"""A tiny network on disk, short recordings, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metatasnet_fast.cli.main import main
from metatasnet_fast.model import MultiTasNet
from tests.support import TINY, recipe_state

sf = pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

RATE = 16000


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines: anything else in it fails."""
        return [json.loads(line) for line in self.out.splitlines()]

    def one_sentence(self) -> str:
        """The only line on standard error, an error without a traceback."""
        (line,) = self.err.splitlines()
        assert line.startswith("metatasnet-fast: error: ") and line.endswith(".")
        return line


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command line in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``tiny`` with a network that runs in milliseconds."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = MultiTasNet(TINY)
    network.load_state_dict(recipe_state(TINY, 1))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """0.4 s of stereo noise, (samples, channels)."""
    return 0.1 * np.random.default_rng(0).standard_normal((int(0.4 * RATE), 2)).astype(np.float32)


@pytest.fixture
def song(tmp_path: Path, sound: np.ndarray) -> Path:
    path = tmp_path / "song.wav"
    sf.write(path, sound, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def separate(command: Command, model: Path) -> Command:
    """``separate --model tiny --device cpu ...``."""

    def run(*argv: str | Path) -> Outcome:
        return command("separate", "--model", model, "--device", "cpu", *argv)

    return run
