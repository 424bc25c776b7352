"""What a run would do, without doing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ..model import load_checkpoint
from ..separation import Separator
from .destination import Destination
from .failures import SongError
from .identity import identity_of
from .local import set_aside
from .settings import Settings
from .song import Song
from .source import Source
from .storage import client_errors, reaching

__all__ = ["Preview", "preview"]

THREADS = 16
"""Songs that are looked at at once: most of the time is waiting."""


@dataclass(frozen=True)
class Preview:
    """Numbers of songs; ``expected_hours`` of audio in those to separate, as far as manifest and sizes tell."""

    songs: int
    todo: int
    done: int
    failed: int
    missing: int
    """Not found, or not to be read now."""
    expected_hours: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview(songs: Sequence[Song], settings: Settings, destination: str) -> Preview:
    """Compare every song with the destination. Raises as ``Separator`` if the model or device cannot be used."""
    network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
    separator = Separator(
        network,
        settings.device,
        settings.backend,
        settings.dtype,
        mixture_consistency=settings.mixture_consistency,
    )
    key = identity_of(settings, separator, settings.model).key
    target = Destination(destination)
    todo, failed = set_aside(songs, settings, target)

    def look(song: Song) -> str:
        source = Source(song.uri)
        try:
            with client_errors():
                source.stamp()
        except (SongError, OSError):
            return "missing"
        with reaching(destination):
            done = not settings.overwrite and target.done(song, key, source) is not None
        return "done" if done else "todo"

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(look, todo))
    counts = Counter(answers)
    hours = sum(song.expected_seconds() for song, answer in zip(todo, answers, strict=True) if answer == "todo") / 3600
    return Preview(len(songs), counts["todo"], counts["done"], len(failed), counts["missing"], hours)
