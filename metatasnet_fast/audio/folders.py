"""Find the audio files below a folder, also through links."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

__all__ = ["AUDIO_SUFFIXES", "find_audio", "is_audio_name", "lies_in"]

AUDIO_SUFFIXES = frozenset(
    "aac ac3 aif aifc aiff alac amr ape au caf dts flac m4a m4b mka mp2 mp3 oga ogg opus rf64 snd tta w64 wav wave wma "
    "wv".split()
)
"""Suffixes of the files that are taken from folders. A file that the user names may have any suffix."""


def is_audio_name(path: str) -> bool:
    """Return whether a path, with `/` between its parts, ends as audio files do and has no hidden part."""
    parts = path.strip("/").split("/")
    return parts[-1].rpartition(".")[2].lower() in AUDIO_SUFFIXES and not any(part.startswith(".") for part in parts)


def find_audio(folder: str, exclude: Collection[str], onerror: Callable[[OSError], object]) -> Iterator[Path]:
    """Yield the audio files of a folder and of the folders below it, in alphabetic order, each folder once.

    Links to folders are followed last, so that a file that can be reached without a link is listed without the link.
    Hidden files and folders are left out.

    Args:
        exclude: real paths of folders that are left out with their contents, even if a link leads to such a folder.
        onerror: called with the system's error if a folder cannot be read; if ``onerror`` returns, the search goes on.
    """
    for place, names in _walk(folder, exclude, onerror):
        yield from (Path(place, name) for name in names if is_audio_name(name))


def _walk(top: str, exclude: Collection[str], onerror: Callable[[OSError], object]) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder from ``top`` down with the names of its files; see :func:`find_audio`. A folder to which
    several links lead is yielded once, so that circles end."""
    walked: set[str] = set()
    starts = deque([top])
    while starts:
        start = starts.popleft()
        base = os.path.realpath(start)
        if base in walked:
            continue
        for place, folders, files in os.walk(start, onerror=onerror):
            # Only ``start`` can be the target of a link: os.walk enters none.
            real = os.path.normpath(os.path.join(base, place[len(start) :].lstrip(os.sep)))
            walked.add(real)
            names = sorted(name for name in folders if not name.startswith("."))
            folders.clear()
            for name in names:
                path, really = os.path.join(place, name), os.path.join(real, name)
                if not os.path.islink(path):
                    folders += [name] if really not in walked and really not in exclude else []
                elif not lies_in(path, exclude):
                    starts.append(path)
            yield place, sorted(files)


def lies_in(path: str, folders: Collection[str]) -> bool:
    """Return whether a path leads to one of the folders, or below it; ``folders`` are real paths."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(os.path.join(folder, "")) for folder in folders)
