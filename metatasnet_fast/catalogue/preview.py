"""What a run would do, without doing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from .._io import sha256_file
from ..model import load_checkpoint
from ..separation import Separator
from .destination import Destination
from .failures import SongError
from .identity import identity_of
from .local import set_aside
from .settings import Settings
from .song import Song
from .source import Source, Stamp
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
    taken: int
    """To fail, because other songs have their ids at the destination."""
    expected_hours: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview(songs: Sequence[Song], settings: Settings, destination: str) -> Preview:
    """Compare every song with the destination. Raises as ``Separator`` if the model or device cannot be used."""
    network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
    settings = settings.of_model(network.config.instruments)
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
                stamp = source.stamp()
        except (SongError, OSError):
            return "missing"
        if settings.overwrite:
            return "todo"
        with reaching(destination):
            if target.done(song, key, source) is not None:
                return "done"
            return "taken" if _is_taken(target, song, source, stamp) else "todo"

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(look, todo))
    counts = Counter(answers)
    hours = sum(song.expected_seconds() for song, answer in zip(todo, answers, strict=True) if answer == "todo") / 3600
    return Preview(len(songs), counts["todo"], counts["done"], len(failed), counts["missing"], counts["taken"], hours)


def _is_taken(target: Destination, song: Song, source: Source, stamp: Stamp) -> bool:
    """Whether another song has the id at the destination; the content is read only if the sizes leave that open."""
    before = target.from_elsewhere(song)
    if before is None or stamp.size != before.input["bytes"]:
        return before is not None
    with source.local() as path:
        return sha256_file(path) != before.content
