"""Songs through the worker, many at once: stems are those of ``Separator``, failures are rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast import Separator
from metatasnet_fast.catalogue import Status
from metatasnet_fast.catalogue.destination import song_folder
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, sf, songs_of, write_song

pytestmark = pytest.mark.usefixtures("small_windows")


def separated(model: Path, song: Path, folder: Path, backend: str, **more: object) -> dict[str, np.ndarray]:
    separator = Separator(model, device="cpu", backend=backend, **more)  # type: ignore[arg-type]
    found = separator.separate_file(song, folder, format="flac", subtype="int24")
    return {stem: sf.read(path, dtype="float64")[0] for stem, path in found.files.items()}


@pytest.fixture
def album(tmp_path: Path) -> list[Path]:
    """Songs of many lengths, rates and channels; two are shorter than a window."""
    folder = tmp_path / "album"
    return [
        write_song(folder / "long.wav", 3.1, seed=1),
        write_song(folder / "mono.flac", 1.3, channels=1, rate=44100, seed=2),
        write_song(folder / "surround.wav", 0.9, channels=6, rate=48000, seed=3),
        write_song(folder / "short.wav", 0.11, seed=4),
        write_song(folder / "short too.wav", 0.11, channels=1, seed=5),
        write_song(folder / "other.ogg", 1.9, rate=22050, seed=6),
    ]


@pytest.mark.parametrize(("backend", "limit"), [("cpu", 0.0), ("reference", 1e-5)])
@pytest.mark.parametrize("consistent", [False, True])
def test_stems_are_those_of_the_separator_whatever_the_neighbours(
    model: Path, album: list[Path], tmp_path: Path, backend: str, limit: float, consistent: bool
) -> None:
    if backend == "cpu":
        pytest.importorskip("metatasnet_fast._native")
    options = settings(
        model, backend=backend, subtype="int24", batch_size=5, songs_in_flight=4, mixture_consistency=consistent
    )
    with Worker(options, str(tmp_path / "out")) as worker:
        outcomes = {outcome.id: outcome for outcome in worker.process(songs_of(*album))}
    assert {outcome.status for outcome in outcomes.values()} == {Status.done}
    for song in album:
        expected = separated(model, song, tmp_path / "alone", backend, mixture_consistency=consistent)
        folder = tmp_path / "out" / song_folder(song.stem)
        for stem, samples in expected.items():
            found = sf.read(folder / f"{stem}.flac", dtype="float64")[0]
            assert np.abs(found - samples).max() <= limit, (song.name, stem)
