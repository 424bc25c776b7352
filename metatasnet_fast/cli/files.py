"""The files of a command line: find the inputs and name their tracks, name the stems' files, record the stems' origins.

Stems are named by a template, and the plan is checked before any work is done. The record of the origins is a small
hidden file next to the stems: it says from which recording and model each stem was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import string
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from .._io import same_checksum, sha256_file, write_atomically
from ..errors import AudioReadError, MetaTasNetError, OutputError

__all__ = [
    "STANDARD_INPUT", "Model", "Origin", "Template", "Track", "check_origins", "find_tracks", "note_origins",
    "plan_outputs", "split_tracks", "tell_apart",
]  # fmt: skip

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Track:
    """A file to separate. If it cannot be separated, ``problem`` is one sentence with the reason."""

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
    from ..audio.read import find_audio

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
    """Return a track for every audio track of every file. If a file has several, their names end in their numbers."""
    from ..audio import open_audio

    found: list[Track] = []
    for track in tracks:
        count = 1
        if not track.problem:
            with contextlib.suppress(MetaTasNetError), open_audio(track.path) as stream:  # separating reports the error
                count = stream.tracks
        if count == 1:
            found.append(track)
        else:
            found += [replace(track, name=f"{track.name}-{number}", number=number) for number in range(1, count + 1)]
    return found


def tell_apart(tracks: Sequence[Track]) -> tuple[list[Track], list[Track]]:
    """Rename tracks that share a name: after their file names with suffix, or if these are equal too, after their paths
    from the common folder.

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
    """Return each track of a group with its name by the first naming scheme under which all names differ. If there is
    no such scheme, the tracks keep their names."""
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
    """Return every track with the files of its stems. Tracks that would write the same file get a problem and no files.

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
        """Return whether a file is this recording, even if moved, copied or touched. A pipe counts as this recording.

        The content is read only if the size agrees with the record, and the path or the time does not.
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
        """Return words that name the recording or model that the stem comes from; None if the stem comes from ``path``
        and ``model``."""
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
