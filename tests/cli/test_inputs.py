"""Which files a command line means, where links are among them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from metatasnet_fast.cli.files import find_tracks


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """``home`` is a link, and ``home/music`` holds a song and the stems of an earlier run."""
    folder = tmp_path / "real" / "music"
    for name in ("a.wav", "separated/tiny/a/bass.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "home").symlink_to("real")
    return folder


def names(*inputs: Path, exclude: Path) -> list[str]:
    with contextlib.ExitStack() as stack:
        found = find_tracks([str(path) for path in inputs], [exclude, exclude / "tiny"], stack)
    return [track.name for track in found]


def test_stems_are_no_tracks_by_whatever_way_they_are_reached(music: Path, tmp_path: Path) -> None:
    linked = tmp_path / "home" / "music"
    assert names(linked, exclude=music / "separated") == ["a"]
    assert names(music, exclude=linked / "separated") == ["a"]
    (music / "same").symlink_to("separated")
    (music / "stems").symlink_to("separated/tiny/a")
    assert names(music, exclude=music / "separated") == ["a"]


def test_stems_that_are_named_themselves_are_tracks(music: Path) -> None:
    assert names(music / "separated/tiny", exclude=music / "separated") == ["a/bass"]


def test_folders_behind_links_are_searched_once(music: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "b.wav").touch()
    (music / "Other").symlink_to(tmp_path / "other")
    (music / "Other again").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "round").symlink_to(music)
    assert names(music, exclude=music / "separated") == ["a", "Other/deep/b"]


def test_a_file_reached_in_two_ways_is_one_track(music: Path, tmp_path: Path) -> None:
    assert names(music / "a.wav", tmp_path / "home" / "music", exclude=music / "separated") == ["a"]
