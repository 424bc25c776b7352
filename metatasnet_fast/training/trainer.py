"""Train in a loop: batch, gradients, step; at intervals a line of the log, a checkpoint and a validation.

A run lives in a folder:

    settings.json     network, training, and what it runs on
    log.jsonl         losses, rates and scores
    last.pt           the state to continue from
    best.pt           the weights with the best validation
    failed.pt         the batch whose loss or gradient was not finite, or whose loss was too large
                      (with several processes, each one writes a file failed-RANK.pt)
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path

from .._terminal import Interruption
from ..backends import Choice
from ..errors import CheckpointError, TrainingDataError, TrainingError
from ..precision import Precision
from ..separation.devices import reporting_memory
from .data import Batch, BatchSource, Track
from .journal import Display, Journal, Summary
from .optimizer import SGDR
from .runtime import World
from .settings import TrainingSettings
from .state import RunState
from .step import BatchGradients, GradientStep, Items, faulty_input, keep_step, unusable_step
from .validation import ValidationScore, validate

__all__ = ["BEST", "LAST", "Trainer"]

LAST, BEST, FAILED = "last.pt", "best.pt", "failed.pt"


class Trainer:
    """The training of a run: from the step in ``state`` to the end that ``settings`` give, or until an interruption.

    Args:
        state: network, optimiser and progress, on the device of the batches.
        batches: this process's share of each batch.
        tracks: tracks to validate on; not needed if ``validate_every`` is 0.
        run: the run's folder, which exists.
        args: the authors' arguments, stored in checkpoints.
        backend, precision: what to train with.
        world: the processes; they must have joined.
        tensorboard: also write TensorBoard's files.
        display: object that shows the run to the user; None to show nothing.
    """

    def __init__(
        self,
        state: RunState,
        settings: TrainingSettings,
        batches: BatchSource,
        tracks: list[Track],
        run: Path,
        args: argparse.Namespace,
        *,
        backend: str = "auto",
        precision: Precision = Precision.float32,
        world: World | None = None,
        tensorboard: bool = False,
        display: Display | None = None,
    ) -> None:
        self.state, self.settings, self.batches, self.tracks, self.run_folder = state, settings, batches, tracks, run
        self.args, self.precision, self.world = args, precision, world or World()
        self.tensorboard, self.display = tensorboard, display or Display()
        self._gradients = GradientStep(
            state.network,
            Choice(backend, precision),
            world=self.world,
            micro_batch=settings.micro_batch,
            recompute=settings.recompute,
            clip=settings.clip_gradient,
            dropout_seed=settings.seed,
        )
        self._schedule = SGDR(state.optimizer, settings.learning_rate, settings.sgdr_period, settings.sgdr_decay)
        self._interruption = Interruption()
        self._window: list[BatchGradients] = []
        self._saved: int | None = state.progress.step if (run / LAST).exists() else None
        """The step at which ``last.pt`` was saved."""
        self._first_score: ValidationScore | None = None
        """The score before the first step, if an instrument was added."""
        self._origin = 0.0
        """Start of the run's clock: the current time minus the seconds that earlier processes spent."""
        self._marked = 0.0, 0
        """Time and step of the last line of the log."""

    def run(self) -> int | None:
        """Train; return the signal that interrupted the run, or None if the training reached its end.

        Raises:
            TrainingError: if loss or gradient is not finite, or the loss exceeds ``max_loss``: the batch and the
                weights before the step are saved. Also if memory does not suffice for a batch's gradients, or for a
                validation: the steps before are saved.
            TrainingDataError: if a batch cannot be read; the steps before are saved.
            CheckpointError: if the last checkpoint cannot be written.
        """
        self.state.network.train()
        with contextlib.ExitStack() as stack:
            if self.world.first:
                journal = Journal(self.run_folder, self.state.progress.step, self.tensorboard, self.display.note)
                self._journal = stack.enter_context(journal)
            stack.enter_context(self._interruption)
            try:
                self._train()
            except TrainingDataError:
                self._save(final=False)  # the steps before the damaged batch are good
                raise
            self._save(final=True)
        return self._interruption.signal

    def _train(self) -> None:
        progress, total = self.state.progress, self.settings.total_steps
        self._origin = time.monotonic() - progress.elapsed
        self._marked = time.monotonic(), progress.step
        if progress.best is not None and progress.rule not in (None, self.settings.best):
            progress.best, progress.best_step = None, 0
            self.display.note(
                f"the best score so far was judged by {progress.rule}: it begins again with {self.settings.best}"
            )
        if not self._validate_if_due():
            return
        if self._over():
            self.display.note(self._nothing_to_do())
            return
        with contextlib.closing(self.batches.stream(progress.step)) as stream:
            for batch in stream:
                step = batch.number + 1
                stopped = self._step(step, batch)
                progress.step = step
                if stopped or not self._validate_if_due() or self._over() or step == total:
                    return
                if step % self.settings.save_every == 0:
                    self._save(final=False)

    def _step(self, step: int, batch: Batch) -> bool:
        """Take one step; return True if a process was asked to stop."""
        progress, settings = self.state.progress, self.settings
        items = Items(batch.mixes, batch.sources, batch.masks())
        if self.precision is Precision.float64:
            items = Items(*([x.double() for x in values] for values in (items.mixes, items.sources, items.masks)))
        # All processes use the clock of the first one: the other votes are 0, and votes are added up.
        clock = time.monotonic() - self._origin if self.world.first else 0.0
        with reporting_memory(lambda: self._too_large(step), TrainingError):
            found = self._gradients(items, step, votes=(clock, float(bool(self._interruption))))
        progress.elapsed, interrupted = found.votes[0], found.votes[1] > 0
        self._check(step, items, found, batch)
        # At a restart of the schedule, the authors' program skips the step.
        restart = self._set_rate(step)
        if not restart:
            self.state.optimizer.step()
            if self.state.kept_rows is not None:
                self.state.kept_rows.restore()
            if self.state.average is not None:
                self.state.average.update(self.state.network, step)
        self._window.append(found)
        if self.world.first:
            self.display.step(step, settings.total_steps, found.loss)
        if self.world.size == 1:
            interrupted = bool(self._interruption)  # a single process may stop at once; several have to agree
        if step % settings.log_every == 0 or step == settings.total_steps or interrupted:
            self._log(step)
        return interrupted

    def _set_rate(self, step: int) -> bool:
        settings = self.settings
        if settings.minutes is None:
            return self._schedule(step)
        done = min(1.0, self.state.progress.elapsed / (60 * settings.minutes))
        for group in self.state.optimizer.param_groups:
            group["lr"] = 0.5 * settings.learning_rate * (math.cos(math.pi * done) + 1)
        return False

    def _check(self, step: int, items: Items, found: BatchGradients, batch: Batch) -> None:
        most = self.settings.largest_loss(self.state.network.config)
        if math.isfinite(found.loss) and math.isfinite(found.norm) and found.loss <= most:
            return
        path = self.run_folder / (FAILED if self.world.size == 1 else f"failed-{self.world.rank}.pt")
        content = {
            "step": step,
            "loss": found.loss,
            "stats": found.stats,
            "gradient_norm": found.norm,
            "mixes": list(items.mixes),
            "sources": list(items.sources),
            "masks": list(items.masks),
            "state_dict": self.state.network.state_dict(),
            "args": self.args,
        }
        kept = keep_step(path, content)
        raise unusable_step(found, step, faulty_input(batch, self.batches), f"{kept}{self._what_is_saved()}")

    def _too_large(self, step: int) -> str:
        self._save(final=False)  # the weights are still those of the step before
        advice = self.settings.lighter(self.world.size)
        return f"Memory ran out in step {step}: train with {advice}{self._what_is_saved()}."

    def _too_large_to_validate(self) -> str:
        where = f"in the validation at step {self.state.progress.step}"
        return f"Memory ran out {where}: validate on shorter tracks, or go on with --validate_every 0{self._what_is_saved()}."

    def _what_is_saved(self) -> str:
        known = self.world.first and self._saved is not None  # the other processes do not write this file
        return f"; {LAST} is of step {self._saved}" if known else ""

    def _over(self) -> bool:
        progress, settings = self.state.progress, self.settings
        if settings.total_steps is not None and progress.step >= settings.total_steps:
            return True
        return settings.minutes is not None and progress.elapsed >= 60 * settings.minutes

    def _nothing_to_do(self) -> str:
        step, settings = self.state.progress.step, self.settings
        if settings.total_steps is not None and step >= settings.total_steps:
            longer = "--epochs" if settings.steps is None else "--steps"
            return f"nothing to do: step {step} of {settings.total_steps}; give more {longer} to go on"
        minutes = self.state.progress.elapsed / 60
        return (
            f"nothing to do: {minutes:.1f} of {settings.minutes:g} minutes, step {step}; give more --minutes to go on"
        )

    def _validate_if_due(self) -> bool:
        """Validate every ``validate_every`` steps and at the end; return False if the validation was interrupted."""
        progress, every = self.state.progress, self.settings.validate_every
        if not every or progress.step == progress.validated or not (progress.step % every == 0 or self._over()):
            return True
        # Save before the validation, so that an interrupted validation loses no step.
        self._save(final=False)
        began = time.monotonic()
        with reporting_memory(self._too_large_to_validate, TrainingError):
            own = validate(
                self.state.usable,
                self.tracks[self.world.rank :: self.world.size],
                self.batches.places,
                self.settings.backend,  # `auto` may choose a faster backend if no gradients are needed
                self.precision,
                lambda: bool(self._interruption),
            )
        parts = self.world.gather_objects(own)
        if any(part is None for part in parts):
            return False
        score = ValidationScore.of([score for part in parts for score in part])
        value = score.total(self.settings.best)
        seconds = time.monotonic() - began
        self._marked = self._marked[0] + seconds, self._marked[1]
        if progress.step == 0:
            self._first_score = score
        progress.validated = progress.step
        best = not math.isnan(value) and (progress.best is None or value > progress.best)
        if best:
            before = progress.best, progress.best_step, progress.rule
            progress.best, progress.best_step, progress.rule = value, progress.step, self.settings.best
        if self.world.first:
            sdr, si_sdr = dict(zip(self._instruments, score.sdr, strict=True)), self._by_stage(score.si_sdr)
            self._journal.write(
                progress.step, "valid", score=value, sdr=sdr, si_sdr=si_sdr, tracks=score.tracks, seconds=seconds
            )
            self.display.validation(progress.step, sdr, score, seconds, best)
            if best and not self._write(BEST, final=False):
                progress.best, progress.best_step, progress.rule = before  # so that the next validation tries again
            if self._first_score is not None and self._over():
                changes = zip(self._instruments, self._first_score.sdr, score.sdr, strict=True)
                told = ", ".join(f"{name} {old:.2f} to {new:.2f}" for name, old, new in changes)
                self.display.note(f"SDR before and after the training: {told} dB")
        return True

    def _log(self, step: int) -> None:
        window, self._window = self._window, []
        if not self.world.first or not window:
            return
        settings, stages = self.settings, self.state.network.config.stages_num
        now, (then, since) = time.monotonic(), self._marked
        self._marked = now, step
        speed = (step - since) / max(now - then, 1e-9)
        count = len(window)
        stats = [sum(values) / count for values in zip(*(found.stats for found in window), strict=True)]
        # The loss leaves out stems that it may use in no track of the cache; a 0 for these would look like a score.
        counts = [any(track.counts[place] for track in self.batches.tracks) for place in self.batches.places]
        by_stage = [
            [stats[len(counts) * s + i] if counted else math.nan for i, counted in enumerate(counts)]
            for s in range(stages)
        ]
        summary = Summary(
            step=step,
            total=settings.total_steps,
            loss=sum(found.loss for found in window) / count,
            sdr=dict(zip(self._instruments, by_stage[-1], strict=True)),
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            norm=sum(found.norm for found in window) / count,
            steps_per_second=speed,
            audio_per_second=speed * settings.batch_size * settings.time_length,
            remaining=self._remaining(step, speed),
        )
        self._journal.write(
            step,
            "train",
            loss=summary.loss,
            si_sdr=self._by_stage(by_stage),
            reconstruction=stats[-3],
            dissimilarity=stats[-2],
            similarity=stats[-1],
            learning_rate=summary.learning_rate,
            gradient_norm=summary.norm,
            steps_per_second=speed,
            audio_seconds_per_second=summary.audio_per_second,
            elapsed=self.state.progress.elapsed,
        )
        self.display.summary(summary)

    def _remaining(self, step: int, speed: float) -> float | None:
        settings = self.settings
        ends = []
        if settings.minutes is not None:
            ends.append(max(0.0, 60 * settings.minutes - self.state.progress.elapsed))
        if settings.total_steps is not None:
            ends.append((settings.total_steps - step) / speed)
        return min(ends, default=None)

    def _save(self, final: bool) -> None:
        progress = self.state.progress
        if self.world.first and (self._saved is None or progress.step > self._saved or final) and progress.step > 0:
            if self._write(LAST, final):
                self._saved = progress.step

    def _write(self, name: str, final: bool) -> bool:
        path = self.run_folder / name
        try:
            self.state.write(path, self.args, self.settings.steps_per_epoch)
        except CheckpointError as error:
            if final:
                raise
            # Do not lose hours of training: the old file is still complete, and the next attempt may succeed.
            self.display.note(f"{error} Training goes on; the next checkpoint is tried again.")
            return False
        return True

    @property
    def _instruments(self) -> tuple[str, ...]:
        return self.state.network.config.instruments

    def _by_stage(self, values: list[list[float]]) -> dict[str, float]:
        return {
            f"stage{s}/{name}": value
            for s, stage in enumerate(values)
            for name, value in zip(self._instruments, stage, strict=True)
        }
