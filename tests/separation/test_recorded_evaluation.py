"""Reference mode gives what the authors' evaluation gave on a real track.

The recording is of their program with the network in float64. Its network is untrained and turns an input error of 4e-7 into
4e-3, so only float64 and the authors' own rounding in the resampler can come back to it. The track was decoded to int16, as
musdb does it, which clips it.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from metatasnet_fast import INSTRUMENTS, Separator, use_backend
from metatasnet_fast.audio import resample
from metatasnet_fast.backends import Choice
from metatasnet_fast.separation import reference_mode
from metatasnet_fast.separation.reference_mode import resample_as_authors
from metatasnet_fast.separation.result import Reporter
from tests.recorded_track import decode_with_ffmpeg
from tests.support import golden

from .conftest import music

RECORDED = golden("evaluate_track")


@cache
def track() -> Tensor:
    """(2, 268288), full scale 1."""
    return decode_with_ffmpeg(exact=True)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.ffmpeg
@pytest.mark.parametrize("stage", range(3))
def test_resampling_is_the_authors_bit_for_bit(stage: int) -> None:
    resampled = resample_as_authors(track().float(), 44100, 8000 * 2**stage)
    assert resampled.shape[1] == int(RECORDED[f"resampled/stage{stage}/length"])
    assert torch.equal(resampled[:, ::17], RECORDED[f"resampled/stage{stage}"])


@pytest.mark.parametrize(("sr_in", "sr_out"), [(44100, 8000), (8000, 44100), (48000, 32000), (22050, 22050)])
def test_the_authors_resampling_is_ours_but_for_rounding(sr_in: int, sr_out: int) -> None:
    waveform = music(2, 9000, sr_in)
    ours, theirs = resample(waveform.double(), sr_in, sr_out), resample_as_authors(waveform, sr_in, sr_out)
    assert ours.shape == theirs.shape
    assert relative(theirs.double(), ours) < 2e-6


@pytest.mark.ffmpeg
def test_stems_are_the_authors_before_and_after_the_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    separated: list[Tensor] = []
    real = reference_mode._infer
    monkeypatch.setattr(reference_mode, "_infer", lambda *args: separated.append(real(*args)) or separated[-1])
    separation = Separator(RECORDED.network(), "cpu", "reference", "float64", "reference").separate(track(), 44100)
    assert relative(torch.stack(separated)[..., ::53], RECORDED["separation_32k"].double()) < 1e-6
    for name in INSTRUMENTS:
        assert relative(separation[name][:, ::53].T, RECORDED[f"estimate/{name}"]) < 5e-6, name
        # The chunk cut leaves the estimates short; zeros are put in their place.
        assert (separation[name][:, -49:] == 0).all() and (separation[name][:, -60:-49] != 0).any()


def test_only_the_last_stage_is_decoded_and_it_is_that_of_inference() -> None:
    network = RECORDED.network()
    signals = [music(1, 9000 * 2**s, 8000 * 2**s)[None] for s in range(3)]
    with torch.no_grad(), use_backend("reference"):
        separated = reference_mode._infer(
            network.engine(Choice.parse("reference", None)), signals, Reporter(None), (0, 1)
        )
        assert torch.equal(separated, network.inference(signals, n_chunks=8)[-1][0, :, 0])
