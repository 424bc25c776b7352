"""Find the files that a command line names, and give each track a name."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import AudioReadError, MetaTasNetError

__all__ = ["STANDARD_INPUT", "Track", "find_tracks", "split_tracks", "tell_apart"]

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Track:
    """A file to separate. If it cannot be separated, ``problem`` says why in one sentence."""

    path: Path
    name: str
    """The file's name without suffix; for a file found in a folder, its path in that folder without suffix."""
    problem: str | None = None
    input: str = ""
    """The user's name for the file, if that is not its path."""
    number: int | None = None
    """Number of the audio track in the file, from 1; None for the file's default."""

    @property
    def label(self) -> str:
        """Return the track's name in messages."""
        return (self.input or str(self.path)) + (f" (audio track {self.number})" if self.number is not None else "")


def find_tracks(inputs: Sequence[str], exclude: Sequence[Path], stack: contextlib.ExitStack) -> list[Track]:
    """Return the tracks of files and folders, in order, each file once.

    Folders are searched with all their subfolders, in alphabetical order, links to folders last; hidden files are left
    out. Files are not opened. Standard input is copied to a temporary file, which is removed when ``stack`` is closed.

    Args:
        inputs: files, folders, or ``-`` for standard input.
        exclude: folders that are left out, as they hold the stems of an earlier run.

    Raises:
        AudioReadError: for an empty name, and for standard input that is given twice or is a terminal.
    """
    if list(inputs).count(STANDARD_INPUT) > 1:
        raise AudioReadError("- is given twice: standard input can be read only once.")
    tracks: dict[str, Track] = {}
    for text in inputs:
        if not text:  # an unset variable of a script; Path("") would be the current folder
            raise AudioReadError("An INPUT is empty: name a file or a folder, `.` for this one.")
        path = Path(text)
        # Path.is_dir would raise for a name that is too long, or in a folder without permission.
        if text == STANDARD_INPUT:
            found: Iterable[Track] = [_standard_input(stack)]
        elif os.path.isdir(path):
            found = _search(path, exclude)
        else:
            found = [Track(path, path.stem.strip(".") or "track", _problem(text))]
        for track in found:
            tracks.setdefault(os.path.join(os.path.realpath(track.path.parent), track.path.name), track)
    return list(tracks.values())


def _problem(text: str) -> str | None:
    from ..audio import is_address

    if not is_address(text) or os.path.exists(text):
        return None
    return (
        f"{text} is an address, and `separate` fetches nothing: download it first, or list it for `catalogue run`, which reads "
        "what the package fsspec can."
    )


def _standard_input(stack: contextlib.ExitStack) -> Track:
    """Copy standard input to a temporary file, since decoders must be able to seek."""
    source = getattr(sys.stdin, "buffer", None)
    if source is None or sys.stdin.isatty():
        raise AudioReadError("Standard input is not a file or a pipe: send a recording to it, or name a file.")
    file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="metatasnet-fast-"))
    shutil.copyfileobj(source, file)
    file.flush()
    return Track(Path(file.name), "stdin", input="standard input")


def _search(folder: Path, exclude: Sequence[Path]) -> Iterable[Track]:
    from ..audio.folders import find_audio

    excluded = {os.path.realpath(path) for path in exclude}
    unreadable: list[OSError] = []
    found = [
        Track(path, path.relative_to(folder).with_suffix("").as_posix())
        for path in find_audio(str(folder), excluded, unreadable.append)
    ]
    for error in unreadable:
        where = Path(error.filename)
        found.append(Track(where, where.name, f"The folder {where} cannot be read ({error.strerror})."))
    if not found:
        found.append(
            Track(folder, folder.name, f"The folder {folder} holds no audio files; name the files themselves.")
        )
    return found


def split_tracks(tracks: Iterable[Track]) -> list[Track]:
    """Return every audio track of every file. If a file has several, each is named after the file and its number."""
    from ..audio import open_audio

    found: list[Track] = []
    for track in tracks:
        count = 1
        if not track.problem:
            with contextlib.suppress(MetaTasNetError), open_audio(track.path) as stream:  # separating reports it
                count = stream.tracks
        if count == 1:
            found.append(track)
        else:
            found += [replace(track, name=f"{track.name}-{number}", number=number) for number in range(1, count + 1)]
    return found


def tell_apart(tracks: Sequence[Track]) -> tuple[list[Track], list[Track]]:
    """Rename tracks that share a name: to their file names with suffix, else to their paths from the common folder.

    Returns:
        all tracks, and those whose name was changed.
    """
    groups: dict[str, list[Track]] = {}
    for track in tracks:
        if not track.problem:
            groups.setdefault(os.path.normcase(track.name), []).append(track)
    names = {id(track): name for group in groups.values() for track, name in _names(group)}
    named = [replace(track, name=names.get(id(track), track.name)) for track in tracks]
    return named, [new for new, old in zip(named, tracks, strict=True) if new.name != old.name]


def _names(group: Sequence[Track]) -> Iterable[tuple[Track, str]]:
    """Return each track of a group with a name, by the first naming scheme under which all names differ; if there is no
    such scheme, with its old name."""
    common = os.path.commonpath([os.path.abspath(track.path.parent) for track in group])
    paths = [Path(os.path.relpath(os.path.abspath(track.path), common)) for track in group]
    endings = [f"-{track.number}" if track.number is not None else "" for track in group]
    ways = (
        [track.name for track in group],
        [track.name + track.path.suffix for track in group],
        [path.with_suffix("").as_posix() + ending for path, ending in zip(paths, endings, strict=True)],
        [path.as_posix() + ending for path, ending in zip(paths, endings, strict=True)],
    )
    best = next((way for way in ways if len({os.path.normcase(name) for name in way}) == len(way)), ways[0])
    return zip(group, best, strict=True)
