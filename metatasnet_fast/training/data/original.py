"""Tracks that the authors' program prepared.

    IN/train_8/0000.npz, train_16, train_32, validation_8, ...   key arr_0, float32 (3, 6, samples)

Left, right and mono (their mean); mixture, drums, bass, other, vocals, accompaniment (the first three).

Source: the authors' ``utility/data_generator.py``.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainingDataError

__all__ = ["FOLDERS", "read_original"]

FOLDERS = {"train": "train", "valid": "validation"}
"""The authors' names of the splits; they prepare no others."""

KEY = "arr_0"

SOURCES = slice(1, 5)


def read_original(files: dict[int, Path]) -> dict[int, NDArray[np.float32]]:
    """Return the stems (4, 2, samples), full scale 1, of one track for each rate.

    Raises:
        TrainingDataError: for a file that is missing, damaged, or of another layout.
    """
    found = {}
    for rate, path in files.items():
        try:
            with np.load(path, allow_pickle=False) as file:
                values = file[KEY]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise TrainingDataError(f"{path} cannot be read ({error}); prepare it again.") from error
        if values.ndim != 3 or values.shape[:2] != (3, 6) or not np.isfinite(values).all():
            raise TrainingDataError(
                f"{path} holds {values.shape} instead of (3, 6, samples) finite numbers; prepare it again."
            )
        found[rate] = np.ascontiguousarray(values[:2, SOURCES].transpose(1, 0, 2), dtype=np.float32)
    return found
