"""Which files a command line means, and what each track is called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..catalogue.folders import walk_folders
from ..errors import AudioReadError

__all__ = ["AUDIO_SUFFIXES", "Track", "find_tracks"]

AUDIO_SUFFIXES = frozenset(
    ".aac .ac3 .aif .aifc .aiff .alac .amr .ape .au .caf .dts .flac .m4a .m4b .mka .mp2 .mp3 .oga .ogg .opus .rf64 .snd "
    ".tta .w64 .wav .wave .wma .wv".split()
)
"""What is taken from folders. A file that is named itself may be called anything."""


@dataclass(frozen=True)
class Track:
    """A file to separate. ``problem`` says in one sentence why there is nothing to separate, if so."""

    path: Path
    name: str
    """Of a file: its name without suffix. Of a file found in a folder: its path in that folder, without suffix."""
    problem: str | None = None


def find_tracks(inputs: Sequence[str], exclude: Sequence[Path]) -> list[Track]:
    """The tracks of files and folders, in order, each file once.

    Folders are searched to the bottom for :data:`AUDIO_SUFFIXES`, in alphabetic order, then behind links to folders,
    without hidden files and without what lies in ``exclude``, the stems of an earlier run. Files are not opened. Raises
    :class:`AudioReadError` for an empty name.
    """
    tracks: dict[str, Track] = {}
    for text in inputs:
        if not text:  # a variable of a script that is not set; Path("") is the folder one is in
            raise AudioReadError("An INPUT is empty: name a file or a folder, `.` for this one.")
        path = Path(text)
        # Not Path.is_dir: that raises for a name that is too long, or in a folder that is closed to this user.
        found = _search(path, exclude) if os.path.isdir(path) else [Track(path, path.stem.strip(".") or "track")]
        for track in found:
            tracks.setdefault(os.path.join(os.path.realpath(track.path.parent), track.path.name), track)
    return list(tracks.values())


def _search(folder: Path, exclude: Sequence[Path]) -> Iterable[Track]:
    excluded = {os.path.realpath(path) for path in exclude}
    found: list[Track] = []
    unreadable: list[OSError] = []
    for place, files in walk_folders(str(folder), excluded, unreadable.append):
        for name in files:
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."):
                path = Path(place, name)
                found.append(Track(path, path.relative_to(folder).with_suffix("").as_posix()))
    for error in unreadable:
        where = Path(error.filename)
        found.append(Track(where, where.name, f"The folder {where} cannot be read ({error.strerror})."))
    if not found:
        found.append(
            Track(folder, folder.name, f"The folder {folder} holds no audio files; name the files themselves.")
        )
    return found
