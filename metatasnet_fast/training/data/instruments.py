"""The instruments of a cache, and the stems of a data set that are summed into each.

``drums,strings=violin+viola+cello`` names two instruments, the second a sum of three stems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...config import INSTRUMENTS, MetaTasNetConfig
from ...errors import ConfigError, TrainingDataError

__all__ = ["DEFAULT", "Stems", "all_parts", "parse_instruments", "stems_found"]

Stems = Mapping[str, tuple[str, ...]]
"""The stems that are added up in each instrument, in order."""

DEFAULT: Stems = {name: (name,) for name in INSTRUMENTS}


def parse_instruments(text: str) -> Stems:
    """Read ``a,b,c=d+e``.

    Raises:
        TrainingDataError: for names that no network can have, or a stem that is in two instruments.
    """
    found: dict[str, tuple[str, ...]] = {}
    for item in text.split(","):
        name, _, parts = (part.strip() for part in item.partition("="))
        if name in found:
            raise TrainingDataError(f"--instruments names {name} twice; give each instrument once.")
        found[name] = tuple(part.strip().lower() for part in parts.split("+")) if parts else (name.lower(),)
    try:
        MetaTasNetConfig(instruments=tuple(found))
    except ConfigError as error:
        raise TrainingDataError(f"--instruments {text}: {error}") from error
    every = [part for parts in found.values() for part in parts]
    twice = [part for part in every if every.count(part) > 1]
    if twice or not all(every):
        raise TrainingDataError(
            f"--instruments {text}: each stem belongs to one instrument, and {twice[0] or 'an empty name'} does not; "
            "write for example strings=violin+viola,other."
        )
    return found


def all_parts(stems: Stems) -> tuple[str, ...]:
    """Return every stem of every instrument, in order."""
    return tuple(part for parts in stems.values() for part in parts)


def stems_found(names: Iterable[str]) -> Stems:
    """Return the instruments of a data set with stems of these names: first the paper's four in its order, then the
    others by name.

    A data set with some of the four has all of them: a track may lack one.

    Raises:
        TrainingDataError: if there are more than a network can have, or names that none can have.
    """
    others = sorted(set(names) - set(INSTRUMENTS))
    first = INSTRUMENTS if set(names) & set(INSTRUMENTS) else ()
    try:
        return {name: (name,) for name in MetaTasNetConfig(instruments=(*first, *others)).instruments}
    except ConfigError as error:
        raise TrainingDataError(
            f"The stems' names are no instruments ({error}) Choose some with --instruments."
        ) from error
