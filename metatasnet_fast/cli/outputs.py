"""Name the files of the stems by a template, check the plan before any work is done, and record the stems' origins.

The record is a small hidden file next to the stems: it says from which recording and model each stem was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import string
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from .._io import same_checksum, sha256_file, write_atomically
from ..errors import MetaTasNetError, OutputError
from .inputs import Track

__all__ = [
    "Model", "Origin", "Template", "check_origins", "check_writable", "note_origins", "plan_outputs",
]  # fmt: skip

FIELDS = ("track", "stem", "ext")

LONGEST = 200
"""Longest name of a record, in bytes; a checksum replaces a longer name. File systems allow 255 bytes."""


@dataclass(frozen=True)
class Template:
    """A name such as ``{track}/{stem}.{ext}``, relative to the folder of a model's stems."""

    parts: tuple[tuple[str, str | None], ...]
    ext: str

    @classmethod
    def parse(cls, text: str, ext: str) -> Template:
        """Parse a template; raise :class:`OutputError` for other placeholders, another suffix, or a path that leaves
        the folder."""
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise OutputError(f"The name {text!r} cannot be read ({error}); write {{{{ for a brace.") from None
        for _, field, spec, conversion in parts:
            if field is not None and (field not in FIELDS or spec or conversion):
                wrong = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise OutputError(
                    f"The name {text!r} has the placeholder {{{wrong}}}; there are {{track}}, {{stem}} and {{ext}}."
                )
        if not text.endswith(".{ext}"):
            raise OutputError(f"The name {text!r} must end in .{{ext}}; the format is chosen with --format.")
        if os.path.isabs(text) or ".." in PurePosixPath(text.replace("\\", "/")).parts:
            raise OutputError(f"The name {text!r} leads out of the output folder; choose that with --output.")
        return cls(tuple((literal, field) for literal, field, _, _ in parts), ext)

    def pattern(self, track: str) -> str:
        """Return the ``name`` for ``Separator.separate_file``: without the suffix, with ``{stem}`` left in place."""
        values = {"track": _escape(track), "stem": "{stem}", "ext": self.ext, None: ""}
        full = "".join(_escape(literal) + values[field] for literal, field in self.parts)
        return full.removesuffix(f".{self.ext}")

    def files(self, folder: Path, track: str, stems: Iterable[str]) -> dict[str, Path]:
        """Return the path of each stem's file."""
        pattern = self.pattern(track)
        return {stem: folder / f"{pattern.format(stem=stem)}.{self.ext}" for stem in stems}

    def record(self, folder: Path, track: str) -> Path:
        """Return the hidden file that says what a track's stems were made from: ``.stems.json``, next to them in most
        layouts.

        The file is in the deepest folder that all stems share. Its name contains the rest of the stems' path.
        """
        pattern = self.pattern(track)
        one, another = (folder / pattern.format(stem=stem) for stem in ("stems", "x"))
        place = Path(os.path.commonpath([one.parent, another.parent]))
        name = "-".join(one.relative_to(place).parts)
        if len(os.fsencode(name)) > LONGEST:
            name = hashlib.sha256(os.fsencode(name)).hexdigest()
        return place / f".{name}.json"


def plan_outputs(
    tracks: Sequence[Track], template: Template, folder: Path, stems: Sequence[str]
) -> list[tuple[Track, dict[str, Path]]]:
    """Return every track with its files. Tracks that would write the same file get a problem instead of files.

    Raises:
        OutputError: if two stems of a track would go to one file, or a stem to one of the inputs.
    """
    owners: dict[str, list[Track]] = {}
    inputs = {os.path.abspath(track.path) for track in tracks}
    plan: list[tuple[Track, dict[str, Path]]] = []
    for track in tracks:
        files = {} if track.problem else template.files(folder, track.name, stems)
        for path in files.values():
            if _key(path) in inputs:
                raise OutputError(f"{path} would overwrite an input; choose another output folder.")
            owners.setdefault(_key(path), []).append(track)
        if len(set(files.values())) < len(files):
            raise OutputError("The stems of a track would overwrite one another; use {stem} in the name.")
        plan.append((track, files))
    return [_without_clash(track, files, owners) for track, files in plan]


def _without_clash(
    track: Track, files: dict[str, Path], owners: dict[str, list[Track]]
) -> tuple[Track, dict[str, Path]]:
    for path in files.values():
        others = [other for other in owners[_key(path)] if other is not track]
        if others:
            problem = (
                f"The stems of {track.label} and {others[0].label} would both go to {path.parent}; separate them in two "
                "commands with different output folders."
            )
            return replace(track, problem=problem), {}
    return track, files


def _key(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))


def check_writable(folder: Path) -> None:
    """Create the folder and a temporary file in it, before any work; raise :class:`OutputError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Nothing can be written to the folder {folder} ({error.strerror}); choose another."
        ) from error


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


REMEDY = "make them again with --overwrite, or choose another folder with --output."


class OtherOriginError(MetaTasNetError):
    """Existing stems come from another recording or another model, or their record cannot be read."""


@dataclass(frozen=True)
class Model:
    name: str
    """The absolute path, or the name of a model that is bundled or on the hub."""
    sha256: str
    """Checksum of the configuration and the weights."""


@dataclass(frozen=True)
class Origin:
    """The recording and the model that a stem was made from."""

    input: str
    """The absolute path of the recording."""
    bytes: int
    mtime_ns: int
    sha256: str
    model: str
    model_sha256: str

    @classmethod
    def of(cls, path: Path, model: Model, name: str = "") -> Origin | None:
        """Return the origin of stems made from the file ``path``; None if ``path`` is not a readable regular file.

        ``name`` replaces the path if the user did not give the path, as for standard input.
        """
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                return None
            digest = sha256_file(path)
        except OSError:
            return None  # the error is reported later, by separating
        return cls(name or os.path.abspath(path), found.st_size, found.st_mtime_ns, digest, model.name, model.sha256)

    def is_of(self, path: Path) -> bool:
        """Return whether a file is this recording, even if moved, copied or touched; a pipe counts as this recording.

        The content is read only if the size is the recorded one, and the path or the time is not.
        """
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
        """Return words that name the stem's other recording or model; None if it comes from ``path`` and ``model``."""
        if not self.is_of(path):
            changed = os.path.abspath(path) == self.input
            return f"are of {self.input}, " + ("as it was before it changed" if changed else "not of this input")
        if not same_checksum(self.model_sha256, model.sha256):
            return f"are by another model, {self.model} (checksum {self.model_sha256[:8]}, not {model.sha256[:8]})"
        return None


def check_origins(record: Path, files: Iterable[Path], path: Path, model: Model) -> None:
    """Check that stems come from a recording and a model. Stems that the record does not list pass the check.

    Raises:
        OtherOriginError: if a stem comes from another recording or model, or if the record cannot be read.
    """
    keys = [_place(record, file) for file in files]
    known = _read(record) if keys else {}
    found = dict.fromkeys(known[key] for key in keys if key in known)
    for origin in found:
        objection = origin.objection(path, model)
        if objection:
            raise OtherOriginError(f"{path}: the stems in {record.parent} {objection}: {REMEDY}")


def note_origins(record: Path, files: Iterable[Path], origin: Origin | None) -> None:
    """Record ``origin`` for the new stems in ``files``; with None, remove their entries. A damaged record is replaced.

    Raises:
        OutputError: if the record cannot be written; the old record is then deleted, too.
    """
    try:
        known = _read(record)
    except OtherOriginError:
        known = {}
    for key in (_place(record, file) for file in files):
        known.pop(key, None)
        if origin is not None:
            known[key] = origin
    _write(record, {key: asdict(value) for key, value in known.items()})


def _place(record: Path, file: Path) -> str:
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
    """Replace the record in one step; if that fails, delete it."""
    try:
        write_atomically(record, json.dumps(entries, indent=1))
    except OSError as error:
        record.unlink(missing_ok=True)  # the record may describe stems that no longer exist
        raise OutputError(
            f"The stems in {record.parent} are complete, but {record} cannot be written ({error.strerror}): make room."
        ) from error
