"""docs/architecture.md promises that a song and a training step can be followed through few files: they are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from metatasnet_fast import native

ROOT = Path(__file__).parents[1]

MOST_FILES = 20
"""The promise of docs/architecture.md."""

TRACE = """
import sys, threading
BACKEND, job = sys.argv[1:]
from pathlib import Path
import torch
import metatasnet_fast
from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.backends import Choice
from metatasnet_fast.benchmark.synthetic import mixtures, sources
from metatasnet_fast.precision import Precision
from metatasnet_fast.training import Ranger
from metatasnet_fast.training.step import GradientStep, Items
from tests.support import TINY

network = MultiTasNet(TINY)
separator = Separator(network, "cpu", BACKEND, "float32")
song = torch.randn(2, 44100)
stems = [stem.float() for stem in sources(TINY, 2, 8000, seed=4)]
count = TINY.stages_num
items = Items(mixtures(stems), stems, [torch.ones(2, len(TINY.instruments), 1)] * count)
optimiser = Ranger(network.parameters())
step = GradientStep(network, Choice(BACKEND, Precision.float32))

def separate():
    separator.separate(song, 44100)

def train():
    step(items, 0)
    optimiser.step()

package = Path(metatasnet_fast.__file__).parent
found = set()

def note(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_name != "<module>" and package in Path(code.co_filename).parents:
        found.add(Path(code.co_filename).relative_to(package).as_posix())

threading.setprofile(note)
sys.setprofile(note)
globals()[job]()
sys.setprofile(None)
print(*sorted(found), sep="\\n")
"""


@pytest.mark.parametrize("job", ["separate", "train"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_song_and_a_training_step_are_followed_through_few_files(backend: str, job: str) -> None:
    if backend == "cpu" and native.reason():
        pytest.skip(f"the compiled backend is not here: {native.reason()}")
    command = [sys.executable, "-c", TRACE, backend, job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert 10 <= len(files) <= MOST_FILES, f"{len(files)} files:\n{done.stdout}"


def test_the_page_that_promises_it_names_places_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert f"at most {MOST_FILES} files" in text
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall("`(.*?)`", row)]
    assert len(named) > 15
    assert [name for name in named if not any((ROOT / top / name).exists() for top in ("", "metatasnet_fast"))] == []
