"""Record of the model, settings and audio that the scores in a folder belong to, in ``evaluation.json`` beside them.

The audio of a track goes on record before the track is scored. So a file of scores is this evaluation's if the settings
agree and the audio on record is that of the track; any other one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._io import model_checksum, reporting_write_errors, write_atomically
from .signals import EvaluationError
from .track import Scoring

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["claim_folder", "settings_of"]

FILE = "evaluation.json"
AUDIO = "audio"
"""The entry of the tracks: ``subset/name`` -> fingerprint."""
ADVICE = "Choose another folder, or overwrite them."


def settings_of(scoring: Scoring, separator: Separator | None) -> dict[str, Any]:
    """Return all that the scores depend on but the audio; with a separator, also the settings that make the estimates."""
    settings: dict[str, Any] = {"engine": scoring.engine, "metrics": list(scoring.metrics)}
    if scoring.silence != "museval" or scoring.regularise:
        settings |= {"silence": scoring.silence, "regularise": scoring.regularise}
    if separator is None:
        return settings
    return settings | {
        "model_sha256": model_checksum(separator.network.config, separator.network.state_dict()),
        "mode": separator.mode,
        "precision": separator.precision.value,
        "mixture_consistency": separator.mixture_consistency,
    }


def claim_folder(
    out: Path, audio: Mapping[str, str | None], settings: Mapping[str, Any], overwrite: bool
) -> dict[str, Path]:
    """Make ``out`` the folder of this evaluation, and return the scores of its own that are there.

    With ``overwrite`` the tracks' scores are deleted first: whatever happens later, none of another evaluation stays
    that would be taken for one of this.

    Args:
        audio: ``subset/name`` of each track -> fingerprint; None if it cannot be read.

    Raises:
        EvaluationError: for scores there of another model, other settings or other audio, a damaged record, or a folder
            that cannot be written.
    """
    with reporting_write_errors(out, EvaluationError, "choose a writable folder"):
        found = _read(out / FILE, overwrite)
        names = (found.keys() | settings.keys()) - {AUDIO}
        differing = sorted(name for name in names if found.get(name) != settings.get(name))
        on_record: dict[str, Any] = {} if differing else found.get(AUDIO, {})
        scored = {name: path for name in audio if (path := out / f"{name}.json").exists()}
        refused = ""
        if overwrite:
            for path in scored.values():
                path.unlink()
            scored = {}
        elif found and differing:
            refused = f"of another evaluation ({', '.join(differing)} differ)"
        elif unknown := scored.keys() - on_record:
            refused = f"with no record of the model and audio that they are of ({_listed(unknown)})"
        elif other := {name for name in scored if on_record[name] != audio[name]}:
            refused = f"of other audio under the same names ({_listed(other)})"
        if refused:
            raise EvaluationError(f"{out} holds scores {refused}. {ADVICE}")
        known = {name: mark for name, mark in {**on_record, **audio}.items() if mark is not None}
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / FILE, json.dumps({**settings, AUDIO: known}, indent=2) + "\n")
        return scored


def _read(path: Path, overwrite: bool) -> dict[str, Any]:
    """The record, empty if there is none or if it is damaged and to be overwritten."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get(AUDIO, {}), dict):
        return found
    if overwrite:
        return {}
    raise EvaluationError(f"{path} is damaged, so it is not known what the scores there are of. {ADVICE}")


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
