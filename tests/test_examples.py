"""Every script in examples/ runs, as its first lines say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
IN_THE_BROWSER = ROOT / "examples" / "separate_in_the_browser.py"
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {IN_THE_BROWSER})
RATE = 16000
sf: Any = pytest.importorskip("soundfile")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Songs, references and estimates of the names that the examples use."""
    rng = np.random.default_rng(0)
    sf.write(tmp_path / "song.wav", 0.1 * rng.standard_normal((RATE, 2)), RATE)
    sf.write(tmp_path / "another.flac", 0.1 * rng.standard_normal((RATE, 2)), RATE)
    for stem in ("bass", "drums"):
        true = 0.1 * rng.standard_normal((2 * RATE, 2))
        for number, place in enumerate(("references", "estimates_a", "estimates_b")):
            (tmp_path / place / "track").mkdir(parents=True, exist_ok=True)
            noise = 0.02 * number * rng.standard_normal(true.shape)
            sf.write(tmp_path / place / "track" / f"{stem}.wav", true + noise, RATE)
    return tmp_path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, folder: Path) -> None:
    found = re.search(rf"^ *python examples/{path.name}(.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert found is not None, "the first lines show no command"
    done = subprocess.run([sys.executable, path, *found[1].split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_page_in_the_browser_separates_a_song(folder: Path) -> None:
    pytest.importorskip("gradio")
    module = runpy.run_path(str(IN_THE_BROWSER))
    stems = module["separate"](str(folder / "song.wav"))
    assert [Path(stem).stem for stem in stems] == list(module["separator"].sources)
    assert [sf.info(stem).frames for stem in stems] == [RATE] * len(stems)
    assert len(module["page"].output_components) == len(stems)
