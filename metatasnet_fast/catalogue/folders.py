"""The folders below a folder, those behind links too, and what lies in which."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator

__all__ = ["lies_in", "walk_folders"]


def walk_folders(
    top: str, exclude: Collection[str], onerror: Callable[[OSError], object]
) -> Iterator[tuple[str, list[str]]]:
    """Every folder from ``top`` down and the names of its files, in alphabetic order, each folder once; no hidden ones.

    Links to folders are followed when all else has been walked, and lead to no folder that has been walked. So a link changes
    the path of nothing that has one without it, and links that lead round end.

    Args:
        exclude: real paths of folders below ``top`` that are left out, with all that is in them, wherever a link leads to them.
        onerror: gets what the system says of a folder that cannot be read; without an exception from it the rest is walked.
    """
    walked: set[str] = set()
    starts = deque([top])
    while starts:
        start = starts.popleft()
        base = os.path.realpath(start)
        if base in walked:
            continue
        for place, folders, files in os.walk(start, onerror=onerror):
            # There is no link after the start: os.walk goes into none.
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
    """Whether a path leads to one of the folders, or below it; ``folders`` are real paths."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(os.path.join(folder, "")) for folder in folders)
