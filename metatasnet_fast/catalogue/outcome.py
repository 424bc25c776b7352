"""The outcome of a song: one row of the ledger."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Failure", "Outcome", "Status"]


class Status(str, enum.Enum):
    done = "done"
    """Separated in this run; everything is at its destination."""
    skipped = "skipped"
    """Was done before, for this content, model and settings."""
    failed = "failed"


class Failure(str, enum.Enum):
    """Why a song failed."""

    not_found = "not_found"
    forbidden = "forbidden"
    not_audio = "not_audio"
    empty = "empty"
    too_long = "too_long"
    decode = "decode"
    does_not_fit = "does_not_fit"
    out_of_memory = "out_of_memory"
    write = "write"
    gone = "gone"
    taken = "taken"
    unknown = "unknown"

    @property
    def lasting(self) -> bool:
        """Return whether the same file would fail again: such a song is retried only when its file changes or on request."""
        return self in (Failure.not_audio, Failure.empty, Failure.too_long, Failure.decode)

    @property
    def worth_retrying(self) -> bool:
        """Return whether another attempt in the same run may succeed."""
        return self in (Failure.out_of_memory, Failure.unknown)

    @property
    def most_in_a_row(self) -> int | None:
        """Songs that may fail so one after the other before the run is stopped; None for any number: the songs are at fault."""
        return MOST_IN_A_ROW.get(self)

    @property
    def hint(self) -> str:
        """Return a sentence that tells the owner of the catalogue what to do."""
        return HINTS[self]


HINTS = {
    Failure.not_found: "Check the address in the manifest.",
    Failure.forbidden: "Change the file's permissions, or the credentials of this machine.",
    Failure.not_audio: "Leave the file out of the manifest; it holds no audio.",
    Failure.empty: "Fetch or export the file again; it holds no samples.",
    Failure.too_long: "Raise --max-hours and add --retry-failed, or cut the file.",
    Failure.decode: "Fetch or export the file again; it is damaged, or in a format that cannot be decoded here.",
    Failure.does_not_fit: "Choose another --format for this song: the message says which holds it.",
    Failure.out_of_memory: "Use a smaller --batch-size or fewer --songs-in-flight, or a machine with more memory.",
    Failure.write: "Check the destination's free space, permissions and connection, then run the same command again.",
    Failure.gone: "Bring the destination back (mount it again), then run the same command again.",
    Failure.taken: "Use another DEST, or a table that gives each song an id of its own; --overwrite replaces the other song.",
    Failure.unknown: "Run the same command again; if it fails again, report it with the message.",
}

MOST_IN_A_ROW = {
    Failure.gone: 1,
    Failure.write: 16,
    Failure.unknown: 16,
    Failure.out_of_memory: 16,
    Failure.forbidden: 100,
    Failure.not_found: 100,
}
"""Separating a million songs that cannot be stored, or finding no file a million times, helps no one."""


@dataclass(frozen=True)
class Outcome:
    """A row of the ledger. Times in seconds, sizes in bytes."""

    id: str
    uri: str
    status: Status
    key: str
    """Model and settings that it holds for (``Identity.key``)."""
    failure: Failure | None = None
    error: str | None = None
    """One sentence: what is wrong."""
    attempts: int = 1
    folder: str | None = None
    """Folder of the outputs, relative to the destination."""
    content: str | None = None
    """SHA-256 of the input, as far as it was read."""
    stamp: str | None = None
    """Size and version of the input when it was opened (``Stamp.text``)."""
    duration: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time in each stage: ``fetch``, ``read``, ``separate``, ``write``, ``publish``."""
    warnings: tuple[str, ...] = ()
    finished: str = ""
    """UTC, ISO 8601."""

    @property
    def hint(self) -> str | None:
        return self.failure.hint if self.failure else None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; with ``hint``."""
        values = asdict(self)
        values["status"] = self.status.value
        values["failure"] = self.failure.value if self.failure else None
        values["hint"] = self.hint
        values["warnings"] = list(self.warnings)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """The reverse of :meth:`to_dict`; unknown keys are left out, as a newer version may have written them."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["status"] = Status(known["status"])
        known["failure"] = Failure(known["failure"]) if known.get("failure") else None
        known["warnings"] = tuple(known.get("warnings", ()))
        return cls(**known)
