"""Score a data set: one track is read or separated while others are scored. A finished track is not scored again.

Memory holds at most one track more than there are workers. ``evaluation.json`` next to the scores records the model,
the settings and the audio of the scores; a track's audio is recorded before the track is scored. So a file of scores
belongs to this evaluation if the recorded model, settings and audio are those of this run; any other file is refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from .._io import model_checksum, reporting_write_errors, write_atomically
from ..errors import EvaluationError, MetaTasNetError
from ..page import listen_to
from ..separation.devices import memory_for
from .scores import TrackScores
from .track import Scoring, evaluate_track
from .tracks import AudioTrack, Pair, TrackFiles, open_tracks, pair_tracks, require_one_length

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["ScoringRun", "TrackOutcome", "evaluate_tracks", "score"]

PAGES = ("file", "folder")
FILE = "evaluation.json"
AUDIO = "audio"
"""Key of the record's fingerprints: ``subset/name`` of a track -> fingerprint."""
ADVICE = "Choose another folder, or overwrite them."


@dataclass(frozen=True)
class TrackOutcome:
    """The outcome of a track: ``done``, ``kept`` from an earlier run, or ``failed``."""

    name: str
    status: str
    error: str | None = None
    warnings: tuple[str, ...] = ()
    audio_seconds: float = 0.0
    reading_seconds: float = 0.0
    """Seconds for decoding the track, and for separating it if that was done."""
    scoring_seconds: float = 0.0
    page: str | None = None
    """Path of the page to listen to, if one was written."""
    scores: TrackScores | None = None


Report: TypeAlias = Callable[[TrackOutcome], object]
Audio: TypeAlias = tuple[AudioTrack, dict[str, torch.Tensor]]
"""A track with its references, and the estimates."""


@dataclass
class ScoringRun:
    """The outcomes of all tracks."""

    outcomes: list[TrackOutcome] = field(default_factory=list)

    @property
    def scores(self) -> list[TrackScores]:
        return [outcome.scores for outcome in self.outcomes if outcome.scores is not None]

    @property
    def failures(self) -> list[TrackOutcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def score(
    references: str | os.PathLike[str],
    estimates: str | os.PathLike[str],
    scoring: Scoring | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    subset: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    report: Report | None = None,
    page: str | None = None,
) -> ScoringRun:
    """Score stems on disk, of any separator.

    Args:
        references, estimates: a file, a folder of stems, or a tree of these, see :mod:`.tracks`. Stems and tracks
            without a reference are left out.
        scoring: metrics and settings; `strict` also ends the run at the first track that fails.
        out: folder for the scores, ``out/<subset or "test">/<track>.json``; with None, no file is written. Existing
            scores of the same audio and settings are kept.
        subset: the only folder of `references` that is scored, such as ``test``; None for all folders.
        workers: tracks scored at once.
        overwrite: score again the tracks that have scores; the old scores are deleted at the start.
        report: called with each track as soon as it is done.
        page: ``file`` to write a page to listen to for each track that is scored, ``out/<subset>/<track>.html``; ``folder``
            to put the page's sounds into a folder next to it.

    Raises:
        EvaluationError: if there are no tracks, no reference has an estimate, or ``out`` holds scores of other audio or
            settings; if `strict`, also for the first track that fails.
        OutOfMemoryError: if `strict` and memory does not suffice for a track.
    """
    scoring = scoring or Scoring()
    pairs, missing = pair_tracks(open_tracks(references, subset), open_tracks(estimates))
    if not pairs or (scoring.strict and missing):
        name, reason = next(iter(missing.items()))
        raise EvaluationError(f"{name}: {reason}")
    run = _Run(scoring, None, out, subset or "test", workers, overwrite, report, page)
    for name, reason in missing.items():
        run.conclude(TrackOutcome(name, "failed", reason))
    return run.work([(pair, pair.read) for pair in pairs])


def evaluate_tracks(
    tracks: Sequence[TrackFiles],
    separator: Separator,
    out: str | os.PathLike[str] | None,
    scoring: Scoring | None = None,
    **where: Any,
) -> ScoringRun:
    """Separate tracks and score the network's stems. `scoring`, `out` and all others (`where`) are arguments of
    :func:`score`."""
    run = _Run(scoring or Scoring(), separator, out, **where)
    return run.work([(files, partial(_separated, separator, files)) for files in tracks])


def _separated(separator: Separator, files: TrackFiles) -> Audio:
    track = files.read()
    require_one_length(track.name, track.signals)
    instruments = separator.network.config.instruments
    known = [stem for stem in instruments if stem in track.stems]
    if not known:
        there, asked = ", ".join(track.stems), ", ".join(instruments)
        raise EvaluationError(f"{track.name} has the stems {there}; the network separates {asked}. Name the files so.")
    advice = "use fast mode" if separator.mode == "reference" else "score fewer tracks at once"
    with memory_for(f"separating {track.name}", f"{advice}, or free some"):
        separation = separator.separate(track.whole, track.rate)
        return track, {name: separation[name].cpu() for name in known}


@dataclass
class _Run:
    """A run in progress: the settings, and the place of the results."""

    scoring: Scoring
    separator: Separator | None
    out: str | os.PathLike[str] | None
    subset: str = "test"
    workers: int = 1
    overwrite: bool = False
    report: Report | None = None
    page: str | None = None
    result: ScoringRun = field(default_factory=ScoringRun)

    def __post_init__(self) -> None:
        if self.page is not None and (self.page not in PAGES or self.out is None):
            raise EvaluationError(f"A page is one of {', '.join(PAGES)}, and needs a folder `out`; got {self.page}.")

    def conclude(self, outcome: TrackOutcome) -> None:
        self.result.outcomes.append(outcome)
        if self.report is not None:
            self.report(outcome)

    def work(self, jobs: Sequence[tuple[TrackFiles | Pair, Callable[[], Audio]]]) -> ScoringRun:
        """Score every track; a job is a track and its reading function. The main thread reads, other threads score."""
        kept: dict[str, Path] = {}
        if self.out is not None:
            audio = {f"{self.subset}/{files.name}": files.fingerprint() for files, _ in jobs}
            kept = _claim(Path(self.out), audio, _settings(self.scoring, self.separator), self.overwrite)
        pending: list[Future[TrackOutcome]] = []
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for files, read in jobs:
                if (path := kept.get(f"{self.subset}/{files.name}")) is not None:
                    self.conclude(TrackOutcome(files.name, "kept", scores=TrackScores.read(path)))
                    continue
                running = [future for future in pending if not future.done()]
                if len(running) > max(1, self.workers):
                    wait(running, return_when=FIRST_COMPLETED)
                while pending and pending[0].done():
                    self.conclude(pending.pop(0).result())
                began = time.perf_counter()
                try:
                    pending.append(pool.submit(self.score, *read(), began, time.perf_counter()))
                except MetaTasNetError as error:
                    self.conclude(self.failed(files.name, error))
            for future in pending:
                self.conclude(future.result())
        return self.result

    def failed(self, name: str, error: MetaTasNetError) -> TrackOutcome:
        if self.scoring.strict:
            raise error
        return TrackOutcome(name, "failed", str(error))

    def score(self, track: AudioTrack, estimates: dict[str, torch.Tensor], began: float, read: float) -> TrackOutcome:
        """Score one track and write the scores; the track was read from the time `began` to the time `read`."""
        started = time.perf_counter()
        try:
            with memory_for(f"scoring {track.name}", "score fewer tracks at once, or free some"):
                about: dict[str, Any] = {"name": track.name, "sample_rate": track.rate, "mixture": track.mixture}
                scores = evaluate_track(track.stems, estimates, self.scoring, **about, warn=False)
            if self.out is not None:
                scores.write(self.out, self.subset)
        except MetaTasNetError as error:
            return self.failed(track.name, error)
        seconds, page, notes = time.perf_counter() - started, None, scores.notes
        if self.page is not None:
            try:
                page = self.write_page(track, estimates, scores)
            except MetaTasNetError as error:  # the track is scored, even without a page
                notes = (*notes, f"There is no page to listen to. {error}")
        audio_seconds = max(signal.shape[-1] for signal in track.signals) / track.rate
        return TrackOutcome(track.name, "done", None, notes, audio_seconds, read - began, seconds, page, scores)

    def write_page(self, track: AudioTrack, estimates: dict[str, torch.Tensor], scores: TrackScores) -> str:
        page = listen_to(
            track.whole,
            estimates,
            track.name,
            {} if self.separator is None else {"Engine": self.separator.describe()},
            path=Path(self.out or "", self.subset, f"{track.name}.html"),
            references={stem: track.stems[stem] for stem in estimates},
            scores=scores.numbers(),
            sample_rate=track.rate,
            in_files=self.page == "folder",
        )
        return str(page)


def _settings(scoring: Scoring, separator: Separator | None) -> dict[str, Any]:
    """Return the settings that the scores depend on; with a separator, also its model and settings."""
    settings: dict[str, Any] = {"engine": "fast", "metrics": list(scoring.metrics)}
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


def _claim(out: Path, audio: Mapping[str, str | None], settings: Mapping[str, Any], overwrite: bool) -> dict[str, Path]:
    """Make ``out`` the folder of this evaluation; return the files of its scores that exist there, by ``subset/name``.

    With ``overwrite``, existing scores of these tracks are deleted first, so that they are not taken for new scores.
    Otherwise scores of another model, other settings or other audio are refused. `audio` holds the fingerprint of each
    track by ``subset/name``; None for a track that cannot be read.
    """
    with reporting_write_errors(out, EvaluationError, "choose a writable folder"):
        record = out / FILE
        try:
            found = json.loads(record.read_text("utf-8")) if record.exists() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get(AUDIO, {}), dict):
            if not overwrite:
                raise EvaluationError(f"{record} is damaged, so it is not known what the scores there are of. {ADVICE}")
            found = {}
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
        write_atomically(record, json.dumps({**settings, AUDIO: known}, indent=2) + "\n")
        return scored


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
