"""Score a data set: one track is read or separated while others are scored, and a finished one is never done again.

Memory holds the tracks in flight, one more than there are workers, whatever the size of the data set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, TypeAlias

import torch

from ..errors import MetaTasNetError
from ..page import listen_to
from ..separation.memory import memory_for
from .record import claim_folder, settings_of
from .scores import TrackScores
from .signals import EvaluationError
from .track import DEFAULT_METRICS, Scoring
from .tracks import AudioTrack, Pair, TrackFiles, open_tracks, pair_tracks

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["ScoringRun", "TrackOutcome", "evaluate_tracks", "score"]

PAGES = ("file", "folder")


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
    page: str | None = None
    """The page to listen to, if one was written."""


Report: TypeAlias = Callable[[TrackOutcome, TrackScores | None], object]
Audio: TypeAlias = tuple[AudioTrack, dict[str, torch.Tensor]]
"""A track with its references, and the estimates."""
_Job: TypeAlias = tuple[TrackFiles | Pair, Callable[[], Audio]]
"""A track, and what gives its audio."""


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
    page: str | None = None,
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
        page: ``file`` to write a page to listen to for each track that is scored, ``out/<subset>/<track>.html``, with the
            estimates, the references and the scores; ``folder`` to put its sounds into a folder beside it.

    Raises:
        EvaluationError: if there are no tracks, no reference has an estimate, or ``out`` holds scores of something else.
    """
    scoring = Scoring(metrics, silence, regularise, strict, device=device)
    pairs, missing = pair_tracks(open_tracks(references, subset), open_tracks(estimates))
    if not pairs or (strict and missing):
        name, reason = next(iter(missing.items()))
        raise EvaluationError(f"{name}: {reason}")
    jobs: list[_Job] = [(pair, pair.read) for pair in pairs]
    run = _Run(scoring, None if out is None else Path(out), subset or "test", report, page)
    for name, reason in missing.items():
        run.conclude(TrackOutcome(name, "failed", reason), None)
    return run.work(jobs, settings_of(scoring, None), workers, overwrite)


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
    page: str | None = None,
) -> ScoringRun:
    """Separate and score tracks; their scores go to ``out/subset/<track>.json``, in museval's format.

    Args:
        tracks: from :func:`open_tracks`; those of their stems that the network knows are scored.
        separator: what is evaluated; its mode is part of what the scores are of.
        scoring: what is computed; with ``strict`` the first track that fails or has a silent stem ends the run.
        overwrite: evaluate again what is there; the old scores of these tracks are deleted at once.
        out, subset, workers, report, page: see :func:`score`.

    Raises:
        EvaluationError: for scores of another model, other settings or other audio in ``out``; if ``strict``, whatever goes
            wrong with a track.
        OutOfMemoryError: if ``strict`` and memory does not suffice for a track.
    """
    scoring = scoring or Scoring()
    jobs: list[_Job] = [(files, partial(_separated, separator, files)) for files in tracks]
    facts = {"Engine": separator.describe()}
    run = _Run(scoring, None if out is None else Path(out), subset, report, page, facts)
    return run.work(jobs, settings_of(scoring, separator), workers, overwrite)


def _separated(separator: Separator, files: TrackFiles) -> Audio:
    track = files.read()
    signals = [*track.stems.values(), *([] if track.mixture is None else [track.mixture])]
    if len({signal.shape[-1] for signal in signals}) > 1:
        raise EvaluationError(f"The stems of {track.name} differ in length. Check the file.")
    instruments = separator.network.config.instruments
    known = [stem for stem in instruments if stem in track.stems]
    if not known:
        raise EvaluationError(
            f"{track.name} has the stems {', '.join(track.stems)}; the network separates {', '.join(instruments)}. "
            "Name the files like these."
        )
    advice = "use fast mode" if separator.mode == "reference" else "score fewer tracks at once"
    with memory_for(f"separating {track.name}", f"{advice}, or free some"):
        separation = separator.separate(track.whole, track.rate)
        return track, {name: separation[name].cpu() for name in known}


@dataclass
class _Run:
    """A run under way: its settings, and where its results go."""

    scoring: Scoring
    out: Path | None
    subset: str
    report: Report | None
    page: str | None
    facts: Mapping[str, str] = field(default_factory=dict)
    """For the pages."""
    result: ScoringRun = field(default_factory=ScoringRun)

    def __post_init__(self) -> None:
        if self.page is not None and (self.page not in PAGES or self.out is None):
            raise EvaluationError(f"A page is one of {', '.join(PAGES)}, and needs a folder `out`; got {self.page}.")

    def conclude(self, outcome: TrackOutcome, scores: TrackScores | None) -> None:
        self.result.outcomes.append(outcome)
        if scores is not None:
            self.result.scores.append(scores)
        if self.report is not None:
            self.report(outcome, scores)

    def work(self, jobs: Sequence[_Job], settings: Mapping[str, object], workers: int, overwrite: bool) -> ScoringRun:
        """Score every track: the main thread reads, threads score."""
        if self.out is not None:
            audio = {f"{self.subset}/{files.name}": files.fingerprint() for files, _ in jobs}
            claim_folder(self.out, audio, settings, overwrite)
        slots = BoundedSemaphore(workers + 1)
        pending: list[Future[tuple[TrackOutcome, TrackScores | None]]] = []
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for files, read in jobs:
                path = None if self.out is None else self.out / self.subset / f"{files.name}.json"
                if path is not None and path.exists() and not overwrite:
                    self.conclude(TrackOutcome(files.name, "kept"), TrackScores.read(path))
                    continue
                slots.acquire()
                began = time.perf_counter()
                try:
                    audio_and_estimates = read()
                except MetaTasNetError as error:
                    slots.release()
                    if self.scoring.strict:
                        raise
                    self.conclude(TrackOutcome(files.name, "failed", str(error)), None)
                    continue
                future = pool.submit(self.score, *audio_and_estimates, time.perf_counter() - began)
                del audio_and_estimates
                future.add_done_callback(lambda _: slots.release())
                pending.append(future)
                while pending and pending[0].done():
                    self.conclude(*pending.pop(0).result())
            for future in pending:
                self.conclude(*future.result())
        return self.result

    def score(
        self, track: AudioTrack, estimates: dict[str, torch.Tensor], reading: float
    ) -> tuple[TrackOutcome, TrackScores | None]:
        """Score one track and file the scores."""
        began = time.perf_counter()
        try:
            with memory_for(f"scoring {track.name}", "score fewer tracks at once, or free some"):
                scores = self.scoring(track, estimates)
            if self.out is not None:
                scores.write(self.out, self.subset)
        except MetaTasNetError as error:
            if self.scoring.strict:
                raise
            return TrackOutcome(track.name, "failed", str(error)), None
        scoring = time.perf_counter() - began
        outcome = TrackOutcome(track.name, "done", None, scores.notes, track.seconds, reading, scoring)
        return self.listen(track, estimates, outcome, scores), scores

    def listen(
        self, track: AudioTrack, estimates: dict[str, torch.Tensor], outcome: TrackOutcome, scores: TrackScores
    ) -> TrackOutcome:
        """Write the page of a track, if asked. A failure is a warning: the scores are there."""
        if self.page is None or self.out is None:
            return outcome
        try:
            page = listen_to(
                track.whole,
                estimates,
                track.name,
                self.facts,
                path=self.out / self.subset / f"{track.name}.html",
                references={stem: track.stems[stem] for stem in estimates},
                scores={stem: {m: scores.value(stem, m) for m in scores.metrics(stem)} for stem in scores.stems},
                sample_rate=track.rate,
                in_files=self.page == "folder",
            )
        except MetaTasNetError as error:
            return replace(outcome, warnings=(*outcome.warnings, f"There is no page to listen to. {error}"))
        return replace(outcome, page=str(page))
