"""A catalogue of good, flawed and broken files, start to end: every good song once, every bad one a row with its type."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metatasnet_fast import Separator
from metatasnet_fast.catalogue import RunEnded, Settings
from metatasnet_fast.catalogue.destination import Destination
from metatasnet_fast.catalogue.inputs import read_manifest
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.report import write_report
from metatasnet_fast.native import load

from .checking import (
    assert_every_song_once,
    assert_rows_are_right,
    assert_same_results,
    assert_stems_are_separators,
)
from .conftest import settings
from .corpus import Corpus, make_corpus
from .watching import MemoryWatch, descendants, open_files, wait_until_gone

pytest.importorskip("av")

BACKEND, LIMIT = ("cpu", 0.0) if load() else ("reference", 1e-5)
"""The compiled backend is batch-invariant to the last bit."""

MiB = 2**20


@dataclass(frozen=True)
class Catalogue:
    corpus: Corpus
    manifest: Path
    settings: Settings

    def run(self, destination: Path, engine: str = "local", **more: object) -> RunEnded:
        songs = read_manifest(str(self.manifest))
        if engine == "ray":
            from metatasnet_fast.catalogue.ray_engine import run_ray

            # There each of the workers has so many threads, and two workers must fit on two cores.
            options = replace(self.settings, threads=1)
            return run_ray(songs, options, str(destination), **more)  # type: ignore[arg-type]
        return run_local(songs, self.settings, str(destination), **more)  # type: ignore[arg-type]

    def separator(self) -> Separator:
        return Separator(self.settings.model, device="cpu", backend=BACKEND)


def make(folder: Path, model: Path, songs: int, longest: float, broken: int, memory: int) -> Catalogue:
    corpus = make_corpus(folder / "music", songs, longest, broken)
    manifest = corpus.write_manifest(folder / "manifest.jsonl")
    return Catalogue(corpus, manifest, settings(model, backend=BACKEND, memory=memory))


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make(tmp_path_factory.mktemp("small"), model, songs=18, longest=8.0, broken=12, memory=16 * MiB)


@pytest.fixture(scope="module")
def large(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make(tmp_path_factory.mktemp("large"), model, songs=182, longest=600.0, broken=34, memory=64 * MiB)


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for the run alone, so that what is left in it shows."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def check(catalogue: Catalogue, destination: Path, ended: RunEnded, alone: Path, own_tmp: Path) -> None:
    corpus = catalogue.corpus
    assert ended.complete and ended.exit_code == 3 and ended.remaining == 0
    assert ended.progress.done == len(corpus.good) and ended.progress.failed == len(corpus.broken)
    assert_rows_are_right(corpus, Destination(str(destination)).ledger())
    assert_every_song_once(corpus, destination)
    assert_stems_are_separators(corpus.good, destination, catalogue.separator(), alone, LIMIT)
    assert list(own_tmp.iterdir()) == []


def test_every_good_song_once_and_every_bad_one_a_typed_row(small: Catalogue, tmp_path: Path, own_tmp: Path) -> None:
    out = tmp_path / "out"
    before, files = descendants(os.getpid()), open_files()
    ended = small.run(out)
    check(small, out, ended, tmp_path / "alone", own_tmp)
    assert wait_until_gone(descendants(os.getpid()) - before) == set()
    assert open_files() == files

    again = small.run(out)
    assert again.progress.done == 0 and again.progress.skipped == len(small.corpus.good)
    assert_every_song_once(small.corpus, out)

    page = Path(write_report(ended, Destination(str(out)), small.settings))
    heard = list(page.parent.glob("listen-*.html"))
    assert heard and all(path.name in page.read_text() for path in heard), "some songs can be listened to"
    assert page.with_name("report.json").is_file()


@pytest.mark.slow
def test_a_catalogue_of_200_local(large: Catalogue, tmp_path: Path, own_tmp: Path) -> None:
    assert len(large.corpus.entries) >= 200
    assert 0.14 <= len(large.corpus.broken) / len(large.corpus.entries) <= 0.17
    out = tmp_path / "out"
    before = descendants(os.getpid())
    with MemoryWatch("catalogue.worker").watching() as memory:
        ended = large.run(out)
    assert wait_until_gone(descendants(os.getpid()) - before) == set()
    check(large, out, ended, tmp_path / "alone", own_tmp)
    # Of torch, the budget, and for each song in flight some windows of 24 s: up to 220 MiB each for 5.1 at 96 kHz.
    assert max(memory.samples) <= 4096 * MiB
    assert memory.growth() <= 256 * MiB


@pytest.mark.slow
def test_a_catalogue_of_200_through_ray(large: Catalogue, tmp_path: Path, own_tmp: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    before = descendants(os.getpid())
    ended = large.run(out, "ray", workers=2)
    assert wait_until_gone(descendants(os.getpid()) - before) == set()
    check(large, out, ended, tmp_path / "alone", own_tmp)


@pytest.mark.slow
def test_shards_make_what_one_run_makes(small: Catalogue, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    small.run(whole)
    for index in (1, 2, 3):
        run_local(read_manifest(str(small.manifest), (index, 3)), small.settings, str(parts), shard=f"{index}/3")
    assert_rows_are_right(small.corpus, Destination(str(parts)).ledger())
    assert_same_results(parts, whole)
