"""Separate and score a data set: one track is separated while others are scored, and a finished one is never done again.

Memory holds the tracks in flight, one more than there are workers, whatever the size of the data set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetaTasNetError, OutOfMemoryError
from ..separation.memory import is_out_of_memory, memory_for
from .bss_eval import METRICS
from .engines import ENGINES
from .musdb18 import MusdbTrack, TrackReader
from .record import claim_folder, settings_of
from .scores import TrackScores
from .signals import EvaluationError, silence

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["EvaluationRun", "TrackOutcome", "evaluate_tracks"]


@dataclass(frozen=True)
class TrackOutcome:
    """What became of a track: ``done``, ``kept`` from an earlier run, or ``failed``."""

    name: str
    status: str
    error: str | None = None
    warnings: tuple[str, ...] = ()
    audio_seconds: float = 0.0
    separation_seconds: float = 0.0
    scoring_seconds: float = 0.0


@dataclass
class EvaluationRun:
    """All outcomes, and the scores of the tracks that have some."""

    outcomes: list[TrackOutcome] = field(default_factory=list)
    scores: list[TrackScores] = field(default_factory=list)

    @property
    def failures(self) -> list[TrackOutcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def evaluate_tracks(
    tracks: Sequence[TrackReader],
    separator: Separator,
    out: str | os.PathLike[str],
    *,
    subset: str = "test",
    engine: str = "fast",
    metrics: Sequence[str] = METRICS,
    workers: int = 1,
    strict: bool = False,
    overwrite: bool = False,
    report: Callable[[TrackOutcome], object] | None = None,
) -> EvaluationRun:
    """Separate and score tracks; their scores go to ``out/subset/<track>.json``, in museval's format.

    Args:
        tracks: from :func:`open_musdb`.
        separator: what is evaluated; its mode is part of what the scores are of.
        out: folder of the scores. What is there from an earlier run with the same model, settings and audio is kept.
        engine: ``fast`` for :func:`bss_eval`, ``museval`` for the original package.
        metrics: with ``fast``, which metrics are computed.
        workers: tracks that are scored at once, beside the one that is separated.
        strict: stop at the first track that fails or has a silent stem, instead of going on.
        overwrite: evaluate again what is there; the old scores of these tracks are deleted at once.
        report: is told of each track as soon as it is through.

    Raises:
        EvaluationError: for scores of another model, other settings or other audio in ``out``, unknown metrics or
            engines; under ``strict`` whatever goes wrong with a track.
        OutOfMemoryError: under ``strict``, if memory does not suffice for a track.
    """
    if engine not in ENGINES:
        raise EvaluationError(f"Unknown engine {engine!r}. Choose one of {', '.join(ENGINES)}.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise EvaluationError(f"Metrics {', '.join(unknown) or 'are missing'}: choose from {', '.join(METRICS)}.")
    out = Path(out)
    claim_folder(out, subset, tracks, settings_of(separator, engine, metrics), overwrite)
    run = EvaluationRun()
    slots = BoundedSemaphore(workers + 1)
    pending: list[Future[tuple[TrackOutcome, TrackScores | None]]] = []

    def finish(future: Future[tuple[TrackOutcome, TrackScores | None]]) -> None:
        outcome, scores = future.result()
        _conclude(run, outcome, scores, report)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for reader in tracks:
            path = out / subset / f"{reader.name}.json"
            if path.exists() and not overwrite:
                _conclude(run, TrackOutcome(reader.name, "kept"), TrackScores.read(path), report)
                continue
            slots.acquire()
            try:
                track = reader.read()
                began = time.perf_counter()
                estimates = _separate(separator, track)
                seconds = time.perf_counter() - began
            except MetaTasNetError as error:
                slots.release()
                if strict:
                    raise
                _conclude(run, TrackOutcome(reader.name, "failed", str(error)), None, report)
                continue
            job = _Scoring(track, estimates, seconds, out, subset, engine, tuple(metrics), strict)
            pending.append(pool.submit(job, slots.release))
            del track, estimates, job
            while pending and pending[0].done():
                finish(pending.pop(0))
        for future in pending:
            finish(future)
    return run


def _conclude(
    run: EvaluationRun,
    outcome: TrackOutcome,
    scores: TrackScores | None,
    report: Callable[[TrackOutcome], object] | None,
) -> None:
    run.outcomes.append(outcome)
    if scores is not None:
        run.scores.append(scores)
    if report is not None:
        report(outcome)


def _separate(separator: Separator, track: MusdbTrack) -> dict[str, np.ndarray[Any, Any]]:
    try:
        separation = separator.separate(track.mixture.T, track.rate)
        return {name: stem.T.cpu().numpy() for name, stem in separation.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "use fast mode" if separator.mode == "reference" else "score fewer tracks at once"
        raise OutOfMemoryError(
            f"Memory does not suffice for separating {track.name}: {advice}, or free some."
        ) from error


@dataclass
class _Scoring:
    """Scores one track, files the scores, and lets go of the audio."""

    track: MusdbTrack | None
    estimates: dict[str, np.ndarray[Any, Any]]
    separation_seconds: float
    out: Path
    subset: str
    engine: str
    metrics: tuple[str, ...]
    strict: bool

    def __call__(self, release: Callable[[], object]) -> tuple[TrackOutcome, TrackScores | None]:
        track = self.track
        assert track is not None
        name, audio_seconds, began = track.name, len(track.mixture) / track.rate, time.perf_counter()
        try:
            with memory_for(f"scoring {name}", "score fewer tracks at once, or free some"):
                scores = ENGINES[self.engine](track, self.estimates, self.metrics, self.strict)
            scores.write(self.out, self.subset)
        except MetaTasNetError as error:
            if self.strict:
                raise
            return TrackOutcome(name, "failed", str(error)), None
        finally:
            self.track, self.estimates = None, {}
            release()
        scoring = time.perf_counter() - began
        warned = (silence(scores.silent),) if scores.silent else ()
        return TrackOutcome(name, "done", None, warned, audio_seconds, self.separation_seconds, scoring), scores
