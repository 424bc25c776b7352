"""The track on which the authors' evaluation was recorded: an excerpt of 6 s that the package stempeg carries."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metatasnet_fast.audio.read import MUSDB_SIGNALS, read_stems

RATE = 44100
SHAPE = (2, 268288)


def track_path() -> Path:
    package = importlib.util.find_spec("stempeg")  # not imported: that needs the program ffmpeg
    if package is None or package.origin is None:
        pytest.skip("stempeg, which carries the recorded track, is not installed")
    return Path(package.origin).parent / "data" / "The Easton Ellises - Falcon 69.stem.mp4"


RECORDED = "6a82acbaa17f7ac6ab0bbafad655251f34aaf55bf6c3e69d191a14c170dc772a"
"""SHA-256 of the mixture as ffmpeg 5.1 decodes it, with which the recordings were made."""


def decode_with_ffmpeg(exact: bool = False) -> Tensor:
    """Return the mixture as the authors' evaluation decoded it: int16, full scale 1, float64 (2, 268288).

    Args:
        exact: skip the test where this ffmpeg rounds some samples otherwise than the recorded one.
    """
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    command = ["ffmpeg", "-v", "error", "-i", str(track_path()), "-map", "0:a:0", "-f", "s16le", "-"]
    pcm = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    if exact and hashlib.sha256(pcm).hexdigest() != RECORDED:
        pytest.skip("this ffmpeg decodes some samples of AAC to another last bit than ffmpeg 5.1")
    track = torch.from_numpy(np.frombuffer(pcm, "<i2").reshape(-1, 2).T / 32768)
    assert track.shape == SHAPE
    return track


def decode_here() -> list[Tensor]:
    """Return the mixture and the stems, drums, bass, other and vocals, as the package decodes them, float64."""
    pytest.importorskip("av", reason="av is not installed")
    signals = read_stems(dict.fromkeys(MUSDB_SIGNALS, track_path())).values()
    assert {(x.sample_rate, x.warnings, x.samples.shape) for x in signals} == {(RATE, (), SHAPE)}
    return [x.samples.double() for x in signals]
