"""Real music against museval. Music is band-limited and partly mono, so the filters are ill-conditioned.

museval's own numbers then move when its input moves by less than any file format can hold. That movement, measured
here, is the yardstick.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from metatasnet_fast.evaluation import METRICS, bss_eval
from metatasnet_fast.evaluation.tracks import open_tracks
from tests.museval_oracle import museval_module

pytestmark = pytest.mark.slow

STEMS = ("vocals", "drums", "bass", "other")
# In 3 the bass is exactly mono: the normal equations are singular.
TRACKS = (1, 3, 13, 19)


def excerpt(index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A test track's stems, and estimates with leakage, a delayed copy, a share of the mixture and noise."""
    root = os.environ.get("METATASNET_MUSDB_PATH")
    if not root:
        pytest.skip("set METATASNET_MUSDB_PATH to the folder of MUSDB18 or of its 7-second excerpts")
    track = open_tracks(root, "test")[index].read()
    assert track.mixture is not None
    samples = round(7.0 * track.rate)
    references = np.stack([track.stems[stem].double().numpy().T[:samples] for stem in STEMS])
    estimates = (
        0.7 * references + 0.15 * np.roll(references, 1, axis=0) + 0.1 * track.mixture.double().numpy().T[:samples]
    )
    estimates[:, 5:] += 0.1 * references[:, :-5]
    return references, estimates + 1e-3 * np.random.RandomState(index).standard_normal(references.shape)


@pytest.mark.parametrize("index", TRACKS)
def test_the_distance_to_museval_is_musevals_distance_to_itself_one_unit_in_the_last_place_away(index: int) -> None:
    museval = museval_module()
    references, estimates = excerpt(index)
    theirs = np.stack(museval.evaluate(references, estimates))
    scores = bss_eval(references, estimates)
    ours = np.stack([scores[metric] for metric in METRICS])
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))

    directions = np.random.RandomState(0).choice([-np.inf, np.inf], size=references.shape)
    moved = np.stack(museval.evaluate(np.nextafter(references, directions), estimates))
    for row, metric in enumerate(METRICS):
        distance = float(np.nanmax(np.abs(ours[row] - theirs[row])))
        own = float(np.nanmax(np.abs(moved[row] - theirs[row])))
        medians = np.abs(np.nanmedian(ours[row], axis=1) - np.nanmedian(theirs[row], axis=1))
        print(f"{metric}: {distance:.1e} dB, museval to itself {own:.1e} dB, medians {medians.max():.1e} dB")
        # A tenth of the quantum of the files is allowed in any case.
        assert distance <= (1e-9 if metric == "SDR" else max(2 * own, 1e-6))
        assert medians.max() < (1e-9 if metric == "SDR" else 0.01)
