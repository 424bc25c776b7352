"""Record the recording and the model that stems come from, in a small hidden file next to them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .._io import same_checksum, sha256_file, write_atomically
from ..errors import MetaTasNetError, OutputError

__all__ = ["Model", "Origin", "check_origins", "note_origins"]

REMEDY = "make them again with --overwrite, or choose another folder with --output."


class OtherOriginError(MetaTasNetError):
    """Existing stems were made from another recording, by another model, or from an unknown one."""


@dataclass(frozen=True)
class Model:
    name: str
    """The absolute path, or the name of a model that is bundled or on the hub."""
    sha256: str
    """Checksum of the configuration and the weights."""


@dataclass(frozen=True)
class Origin:
    """The recording that a stem was made of, and the model."""

    input: str
    """The absolute path of the recording."""
    bytes: int
    mtime_ns: int
    sha256: str
    model: str
    model_sha256: str

    @classmethod
    def of(cls, path: Path, model: Model, name: str = "") -> Origin | None:
        """Return the origin of a file's stems, with ``name`` where the path is not the user's; None if it can't be read."""
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                return None
            digest = sha256_file(path)
        except OSError:
            return None  # separating it says why
        return cls(name or os.path.abspath(path), found.st_size, found.st_mtime_ns, digest, model.name, model.sha256)

    def is_of(self, path: Path) -> bool:
        """Return whether a file is the recording, also if moved, copied or touched; read the content only if needed."""
        same_place = os.path.abspath(path) == self.input
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                return True
            if same_place and (found.st_size, found.st_mtime_ns) == (self.bytes, self.mtime_ns):
                return True
            return found.st_size == self.bytes and sha256_file(path) == self.sha256
        except OSError:
            return same_place  # an unreadable file at the recorded path counts as the same recording

    def objection(self, path: Path, model: Model) -> str | None:
        """Say which other input or model the stem comes from; None if it comes from the recording ``path`` and ``model``."""
        if not self.is_of(path):
            changed = os.path.abspath(path) == self.input
            return f"are of {self.input}, " + ("as it was before it changed" if changed else "not of this input")
        if not same_checksum(self.model_sha256, model.sha256):
            return f"are by another model, {self.model} (checksum {self.model_sha256[:8]}, not {model.sha256[:8]})"
        return None


def check_origins(record: Path, files: Iterable[Path], path: Path, model: Model) -> None:
    """Check that stems come from a recording and a model. Stems that the record does not list pass the check.

    Raises:
        OtherOriginError: if they are not, or if the record cannot be read.
    """
    keys = [_key(record, file) for file in files]
    known = _read(record) if keys else {}
    found = dict.fromkeys(known[key] for key in keys if key in known)
    for origin in found:
        objection = origin.objection(path, model)
        if objection:
            raise OtherOriginError(f"{path}: the stems in {record.parent} {objection}: {REMEDY}")


def note_origins(record: Path, files: Iterable[Path], origin: Origin | None) -> None:
    """Write into the record what new stems are of. A damaged record is replaced.

    Raises:
        OutputError: if it cannot be written; there is no record then.
    """
    try:
        known = _read(record)
    except OtherOriginError:
        known = {}
    for key in (_key(record, file) for file in files):
        known.pop(key, None)
        if origin is not None:
            known[key] = origin
    _write(record, {key: asdict(value) for key, value in known.items()})


def _key(record: Path, file: Path) -> str:
    return file.relative_to(record.parent).as_posix()


def _read(record: Path) -> dict[str, Origin]:
    try:
        entries = json.loads(record.read_text("utf-8"))
        return {key: Origin(**values) for key, values in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OtherOriginError(
            f"{record} does not say what the stems beside it are of ({error}): remove it, or make them again with --overwrite."
        ) from error


def _write(record: Path, entries: dict[str, dict[str, object]]) -> None:
    """Replace the record in one step."""
    try:
        write_atomically(record, json.dumps(entries, indent=1))
    except OSError as error:
        record.unlink(missing_ok=True)  # the record may describe stems that no longer exist
        raise OutputError(
            f"The stems in {record.parent} are complete, but {record} cannot be written ({error.strerror}): make room."
        ) from error
