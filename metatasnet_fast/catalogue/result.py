"""``result.json``: written last, it says that a song is done, and for what.

    {"format_version": 1, "id": ..., "uri": ...,
     "input":    {"sha256", "stamp", "bytes", "codec"},
     "identity": {"model_name", "model_sha256", "settings": {...}}, "key": ...,
     "audio":    {"duration", "sample_rate", "channels", "samples"},
     "files":    {"drums": {"path", "bytes", "sha256", "clipped"}, ...},
     "gains":    {"drums": [per channel], ...},
     "seconds":  {"fetch", "read", "separate", "write"},
     "made_by":  {"version", "backend", "device", "precision"},
     "warnings": [...], "finished": "2026-01-01T00:00:00Z"}

Paths are relative to the file itself; sizes in bytes, times in seconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .settings import Identity

__all__ = ["RESULT_NAME", "Result", "StemFile"]

RESULT_NAME = "result.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class StemFile:
    """A file of stems: ``path`` relative to the song's folder."""

    path: str
    bytes: int
    sha256: str
    clipped: int = 0
    """Samples that an integer format had to clip."""


@dataclass(frozen=True)
class Result:
    """The contents of a ``result.json``."""

    id: str
    uri: str
    input: dict[str, Any]
    identity: Identity
    audio: dict[str, Any]
    files: dict[str, StemFile]
    gains: dict[str, list[float]]
    seconds: dict[str, float]
    made_by: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    finished: str = ""

    @property
    def key(self) -> str:
        return self.identity.key

    @property
    def content(self) -> str:
        """SHA-256 of the input."""
        return str(self.input["sha256"])

    def to_json(self) -> str:
        values = {"format_version": FORMAT_VERSION, **asdict(self), "key": self.key}
        return json.dumps(values, indent=1, ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Result | None:
        """None if the text is not a whole ``result.json`` of a version that is known here."""
        try:
            values = json.loads(text)
            if values.pop("format_version") != FORMAT_VERSION:
                return None
            key = values.pop("key")
            values["identity"] = Identity.from_dict(values["identity"])
            values["files"] = {name: StemFile(**entry) for name, entry in values["files"].items()}
            result = cls(**values)
            # Touching what resuming relies on: a file with holes is none.
            complete = result.key == key and result.content and result.files and "stamp" in result.input
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return result if complete else None
