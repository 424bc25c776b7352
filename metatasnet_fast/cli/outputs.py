"""Places of the stems: the template of their names, and the checks before any work is done."""

from __future__ import annotations

import hashlib
import os
import string
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import OutputError
from .inputs import Track

__all__ = ["Template", "check_writable", "plan_outputs"]

FIELDS = ("track", "stem", "ext")

LONGEST = 200
"""Bytes of a record's name; file systems hold 255, and stems may need fewer than their record."""


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
        """Return the ``name`` for ``Separator.separate_file``: without the ending, with ``{stem}`` left in."""
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

        It is in the deepest folder that all stems share, and its name contains the rest of their path.
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
    """Return every track with its files; those of which a stem would go to one file get a problem instead.

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
    """Make the folder and a file in it, to know before the work; raises :class:`OutputError`."""
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
