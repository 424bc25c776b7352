"""Score a data set: one track is read or separated while others are scored, and a finished one is never done again.

Memory holds the tracks in flight, one more than there are workers, whatever the size of the data set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, TypeAlias

import torch

from ..errors import MetaTasNetError, OutOfMemoryError
from ..separation.memory import is_out_of_memory, memory_for
from .engines import Scoring
from .record import claim_folder, settings_of
from .scores import TrackScores
from .signals import EvaluationError
from .track import DEFAULT_METRICS
from .tracks import AudioTrack, Pair, TrackFiles, open_tracks, pair_tracks

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["ScoringRun", "TrackOutcome", "evaluate_tracks", "score"]


@dataclass(frozen=True)
class TrackOutcome:
    """The outcome of a track: ``done``, ``kept`` from an earlier run, or ``failed``."""

    name: str
    status: str
    error: str | None = None
    warnings: tuple[str, ...] = ()
    audio_seconds: float = 0.0
    reading_seconds: float = 0.0
    """Seconds for decoding the track and, if it was separated, for that."""
    scoring_seconds: float = 0.0


Report: TypeAlias = Callable[[TrackOutcome, TrackScores | None], object]


@dataclass
class ScoringRun:
    """All outcomes, and the scores of the tracks that have some."""

    outcomes: list[TrackOutcome] = field(default_factory=list)
    scores: list[TrackScores] = field(default_factory=list)

    @property
    def failures(self) -> list[TrackOutcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def score(
    references: str | os.PathLike[str],
    estimates: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    silence: str = "museval",
    regularise: bool = False,
    strict: bool = False,
    device: str = "cpu",
    subset: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    report: Report | None = None,
) -> ScoringRun:
    """Score the stems of any separator that lie on disk.

    Args:
        references, estimates: a file, a folder of stems, or a tree of these, see :mod:`.tracks`. Stems without a reference,
            and tracks without one, are left out.
        out: folder for the scores, ``out/<subset or "test">/<track>.json``; None keeps none. What is there of the same audio
            and settings is kept.
        metrics, silence, regularise, strict, device: see :class:`Scoring`; `strict` also ends the run at the first track that
            fails.
        subset: a folder of `references`, such as ``test``, if not all of it is to be scored.
        workers: tracks scored at once.
        overwrite: score again what is there.
        report: is told of each track as soon as it is through.

    Raises:
        EvaluationError: if there are no tracks, no reference has an estimate, or ``out`` holds scores of something else.
    """
    scoring = Scoring(metrics, silence, regularise, strict, device=device)
    pairs, missing = pair_tracks(open_tracks(references, subset), open_tracks(estimates))
    if not pairs or (strict and missing):
        name, reason = next(iter(missing.items()))
        raise EvaluationError(f"{name}: {reason}")
    jobs = [_Job(pair, pair.read) for pair in pairs]
    return _run(jobs, missing, out, scoring, None, subset or "test", workers, overwrite, report)


def evaluate_tracks(
    tracks: Sequence[TrackFiles],
    separator: Separator,
    out: str | os.PathLike[str] | None,
    scoring: Scoring | None = None,
    *,
    subset: str = "test",
    workers: int = 1,
    overwrite: bool = False,
    report: Report | None = None,
) -> ScoringRun:
    """Separate and score tracks; their scores go to ``out/subset/<track>.json``, in museval's format.

    Args:
        tracks: from :func:`open_tracks`; those of their stems that the network knows are scored.
        separator: what is evaluated; its mode is part of what the scores are of.
        out: folder of the scores; None keeps none. What is there from an earlier run with the same model, settings and audio
            is kept.
        scoring: what is computed; with ``strict`` the first track that fails or has a silent stem ends the run.
        workers: tracks that are scored at once, beside the one that is read.
        overwrite: evaluate again what is there; the old scores of these tracks are deleted at once.
        report: is told of each track as soon as it is through.

    Raises:
        EvaluationError: for scores of another model, other settings or other audio in ``out``; if ``strict``, whatever goes
            wrong with a track.
        OutOfMemoryError: if ``strict`` and memory does not suffice for a track.
    """
    scoring = scoring or Scoring()
    jobs = [_Job(files, partial(_separated, separator, files)) for files in tracks]
    return _run(jobs, {}, out, scoring, separator, subset, workers, overwrite, report)


@dataclass(frozen=True)
class _Job:
    """A track, and what gives its references and estimates."""

    files: TrackFiles | Pair
    read: Callable[[], tuple[AudioTrack, dict[str, torch.Tensor]]]


def _separated(separator: Separator, files: TrackFiles) -> tuple[AudioTrack, dict[str, torch.Tensor]]:
    track = files.read()
    if (
        len(
            {
                signal.shape[-1]
                for signal in [*track.stems.values(), *([] if track.mixture is None else [track.mixture])]
            }
        )
        > 1
    ):
        raise EvaluationError(f"The stems of {track.name} differ in length. Check the file.")
    known = [stem for stem in separator.network.config.instruments if stem in track.stems]
    if not known:
        raise EvaluationError(
            f"{track.name} has the stems {', '.join(track.stems)}; the network separates "
            f"{', '.join(separator.network.config.instruments)}. Name the files like these."
        )
    mixture = torch.stack(list(track.stems.values())).sum(0) if track.mixture is None else track.mixture
    try:
        separation = separator.separate(mixture, track.rate)
        return track, {name: separation[name].cpu() for name in known}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "use fast mode" if separator.mode == "reference" else "score fewer tracks at once"
        raise OutOfMemoryError(
            f"Memory does not suffice for separating {track.name}: {advice}, or free some."
        ) from error


def _run(
    jobs: Sequence[_Job],
    missing: Mapping[str, str],
    out: str | os.PathLike[str] | None,
    scoring: Scoring,
    separator: Separator | None,
    subset: str,
    workers: int,
    overwrite: bool,
    report: Report | None,
) -> ScoringRun:
    folder = None if out is None else Path(out)
    if folder is not None:
        claim_folder(folder, subset, [job.files for job in jobs], settings_of(scoring, separator), overwrite)
    run = ScoringRun()

    def conclude(outcome: TrackOutcome, scores: TrackScores | None) -> None:
        run.outcomes.append(outcome)
        if scores is not None:
            run.scores.append(scores)
        if report is not None:
            report(outcome, scores)

    for name, reason in missing.items():
        conclude(TrackOutcome(name, "failed", reason), None)
    slots = BoundedSemaphore(workers + 1)
    pending: list[Future[tuple[TrackOutcome, TrackScores | None]]] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for job in jobs:
            path = None if folder is None else folder / subset / f"{job.files.name}.json"
            if path is not None and path.exists() and not overwrite:
                conclude(TrackOutcome(job.files.name, "kept"), TrackScores.read(path))
                continue
            slots.acquire()
            began = time.perf_counter()
            try:
                track, estimates = job.read()
            except MetaTasNetError as error:
                slots.release()
                if scoring.strict:
                    raise
                conclude(TrackOutcome(job.files.name, "failed", str(error)), None)
                continue
            task = _Task(track, estimates, time.perf_counter() - began, scoring, folder, subset)
            pending.append(pool.submit(task, slots.release))
            del track, estimates, task
            while pending and pending[0].done():
                conclude(*pending.pop(0).result())
        for future in pending:
            conclude(*future.result())
    return run


@dataclass
class _Task:
    """Scores one track, files the scores, and lets go of the audio."""

    track: AudioTrack | None
    estimates: dict[str, torch.Tensor]
    reading_seconds: float
    scoring: Scoring
    out: Path | None
    subset: str

    def __call__(self, release: Callable[[], object]) -> tuple[TrackOutcome, TrackScores | None]:
        track = self.track
        assert track is not None
        name, seconds, began = track.name, track.seconds, time.perf_counter()
        try:
            with memory_for(f"scoring {name}", "score fewer tracks at once, or free some"):
                scores = self.scoring(track, self.estimates)
            if self.out is not None:
                scores.write(self.out, self.subset)
        except MetaTasNetError as error:
            if self.scoring.strict:
                raise
            return TrackOutcome(name, "failed", str(error)), None
        finally:
            self.track, self.estimates = None, {}
            del track
            release()
        scoring = time.perf_counter() - began
        return TrackOutcome(name, "done", None, scores.notes, seconds, self.reading_seconds, scoring), scores
