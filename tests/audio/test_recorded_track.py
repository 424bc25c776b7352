"""The three rates of a real track, as the authors' evaluation resampled it.

Recorded before the division by the standard deviation and before the lengths were equalised, from 16-bit samples: the
evaluation decodes through ffmpeg to int16, which clips what AAC decodes beyond full scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import StreamingResampler, resample
from tests.recorded_track import decode_here, decode_with_ffmpeg

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluate_track.npz"
STRIDE = 17


# With ffmpeg 5.1 the error is 4.7e-7, which is the recording's own float32. Other versions of the AAC decoder put some
# samples on the other side of a rounding border: with FFmpeg 8, 194 of 536,576 differ by one step.
TOLERANCE = 5e-6


@pytest.mark.parametrize("program", [pytest.param("ffmpeg", marks=pytest.mark.ffmpeg), "PyAV"])
def test_resampling_is_as_recorded(program: str) -> None:
    golden = np.load(GOLDEN)
    track = decode_here()[0] if program == "PyAV" else decode_with_ffmpeg()
    for stage in range(3):
        expected = torch.from_numpy(golden[f"resampled/stage{stage}"]).double()
        for dtype in (torch.float32, torch.float64):
            y = resample(track.to(dtype), 44100, 8000 * 2**stage)
            assert y.shape == (2, int(golden[f"resampled/stage{stage}/length"]))
            error = (y[:, ::STRIDE].double() - expected).norm(dim=1) / expected.norm(dim=1)
            assert float(error.max()) < TOLERANCE


def test_streaming_the_track_changes_no_bit() -> None:
    track = decode_here()[0]
    stream = StreamingResampler(44100, 32000, channels=2)
    y = torch.cat([*(stream.push(block) for block in track.split(4096, 1)), stream.finish()], 1)
    assert torch.equal(y, resample(track, 44100, 32000))
