"""Whatever is done to a file, it is read or refused with a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sf = pytest.importorskip("soundfile", reason="soundfile is not installed")

from .support import av, encode, multiplex, remux  # noqa: E402

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FILES = 10_000
ENCODED = {
    "a.mp3": "libmp3lame", "a.m4a": "aac", "b.m4a": "alac", "a.mka": "aac", "a.webm": "libopus", "a.wma": "wmav2",
    "a.ac3": "ac3", "a.ts": "mp2", "a.avi": "mp2", "a.mov": "pcm_s24le", "a.aac": "aac", "a.tta": "tta", "a.wv": "wavpack",
    "a.caf": "alac", "a.nut": "aac", "a.mp2": "mp2", "a.flv": "aac", "a.eac3": "eac3", "a.dts": "dca", "b.mka": "vorbis",
}  # fmt: skip
WRITTEN = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"),
    ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("CAF", "PCM_16"), ("AU", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of every kind that can be made here."""
    folder = tmp_path_factory.mktemp("originals")
    x = 0.5 * torch.rand(1, 9600, generator=torch.Generator().manual_seed(0)) - 0.25
    for format, subtype in WRITTEN:
        rate = 8000 if subtype == "GSM610" else 48000
        sf.write(folder / f"{format}-{subtype}.{format.lower()}", x[0].numpy(), rate, format=format, subtype=subtype)
    for name, codec in ENCODED.items():
        try:
            encode(folder / name, torch.cat([x, x]), 48000, codec, options={"strict": "experimental"})
        except (ValueError, av.FFmpegError):  # this build of FFmpeg cannot encode it
            (folder / name).unlink(missing_ok=True)
    remux(folder / "a.webm", folder / "copied.opus")
    multiplex(folder / "two.mkv", [x, x], 48000, "flac", default=1)
    for name in ("tone.ape", "tone.mpc"):
        (folder / name).write_bytes((DATA / name).read_bytes())
    return folder


def outcomes(originals: Path, first: int, stop: int) -> Iterator[tuple[int, str]]:
    """Yield the outcome of every mutation; a process that dies or hangs is followed by another one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while first < stop:
        command = [sys.executable, "-m", "tests.audio.fuzzing", str(originals), str(first), str(stop)]
        began, result = first, ""
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                number, _, result = line.strip().partition(" ")
                first = int(number) + 1
                if result:
                    yield int(number), result
        if not result:  # a number was printed before the file was read
            yield first - 1, f"? the process ended with {process.returncode}"
        assert first > began, f"the worker does not start: {process.returncode}"


@pytest.mark.slow
def test_no_mutated_file_raises_anything_but_our_errors(originals: Path) -> None:
    found = dict(outcomes(originals, 0, FILES))
    kinds = Counter(result.partition(" ")[2] for result in found.values())
    print(kinds)
    wrong = {number: result for number, result in found.items() if result.partition(" ")[2] not in ("read", "refused")}
    assert not wrong, wrong
    assert len(found) == FILES and kinds["read"] > FILES // 10 and kinds["refused"] > FILES // 10


def test_a_few_mutated_files_raise_nothing_but_our_errors(originals: Path) -> None:
    found = dict(outcomes(originals, FILES, FILES + 150))
    assert {result.partition(" ")[2] for result in found.values()} <= {"read", "refused"}, found
