"""Separation in windows: one pass to resample and measure, one through the network.

    blocks -> resample to every stage's rate -> spools, standard deviations
    windows of the spools, normalised -> network -> stitch -> resample back -> spool, normal equations -> gains

Nothing but the spools grows with the recording, and those move into files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio import StreamingResampler
from ..errors import EmptyAudioError
from ..model.engine import Engine
from ..model.methods import RunningDeviation
from .batches import BatchRunner
from .gains import SILENCE, NormalEquations, safe_std
from .outputs import Unscaled
from .recording import Budget, Recording, Spool
from .result import Reporter
from .windows import Window, WindowShape, plan_windows, shortest_frames, stitch

__all__ = ["Resampled", "resample", "separate_in_windows", "separate_resampled"]


@dataclass
class Resampled:
    """A recording at every stage's rate."""

    rate: int
    """That of the recording, in Hz."""
    mixture: Spool
    stages: list[Spool]
    deviations: list[Tensor]
    """(channels,) for every stage."""
    non_silent: list[int]
    """Channels that are not silent."""
    home: torch.device
    budget: Budget


def separate_in_windows(
    engine: Engine,
    runner: BatchRunner,
    shape: WindowShape,
    recording: Recording,
    device: torch.device,
    home: torch.device,
    budget: Budget,
    reporter: Reporter,
) -> Unscaled:
    """Separate a recording in windows.

    Args:
        device: where the network is.
        home: where signals are kept between the passes, ``device`` or the CPU.

    Raises:
        EmptyAudioError: for a recording without samples.
        MetaTasNetError: if a window does not fit into memory, or the network's output is not finite.
    """
    source = resample(engine, recording, device, home, budget, reporter)
    return separate_resampled(engine, runner, shape, source, device, reporter)


def separate_resampled(
    engine: Engine, runner: BatchRunner, shape: WindowShape, source: Resampled, device: torch.device, reporter: Reporter
) -> Unscaled:
    """Do the second part of :func:`separate_in_windows`, with a recording that :func:`resample` has read; frees its stages."""
    config, rate, length = engine.config, source.rate, source.mixture.length
    reporter.total = length / rate
    non_silent = source.non_silent

    # One sample at the base rate more than the recording has, so that resampling back gives enough samples.
    frames = -(-(length * config.sampling_rate // rate + 1) // config.W)
    plan = plan_windows(max(frames, shortest_frames(config)), shape)
    estimates = runner.run(engine, _windows(engine, source, non_silent, plan, min(plan[-1].stop, shape.window), device))
    stitched = stitch(estimates, plan, len(non_silent), config.stages[-1].W, shape.fade)

    instruments = len(config.instruments)
    stems = Spool(instruments * len(non_silent), source.budget)
    equations = NormalEquations(len(non_silent), instruments, config.added_instruments)
    if non_silent:
        for block in _at_rate(stitched, config.output_rate, rate, instruments * len(non_silent), length):
            start, stop = stems.length, stems.length + block.shape[1]
            mixture = source.mixture.read(start, stop)[non_silent].to(device)
            equations.add(block.view(len(non_silent), instruments, -1), mixture)
            stems.append(block.to(source.home))
            reporter.report("separate", stop / rate)
        assert stems.length == length
    for spool in source.stages:
        spool.close()
    return Unscaled.solve(stems, source.mixture, non_silent, equations, config)


def resample(
    engine: Engine, recording: Recording, device: torch.device, home: torch.device, budget: Budget, reporter: Reporter
) -> Resampled:
    """Read a recording to its end, and resample it to every stage's rate: the first part of :func:`separate_in_windows`."""
    rates = [stage.sampling_rate for stage in engine.config.stages]
    channels = recording.channels
    resamplers = [StreamingResampler(recording.sample_rate, rate, channels) for rate in rates]
    deviations = [RunningDeviation(channels) for _ in rates]
    spools = [Spool(channels, budget) for _ in rates]
    mixture = Spool(channels, budget)
    peaks = torch.zeros(channels, dtype=torch.float32, device=device)
    if recording.samples:
        reporter.total = recording.samples / recording.sample_rate

    def take(index: int, block: Tensor) -> None:
        deviations[index].add(block)
        spools[index].append(block.to(home))

    for block in recording.clean_blocks(device):
        mixture.append(block.to(home))
        peaks = torch.maximum(peaks, block.abs().amax(1))
        for index, resampler in enumerate(resamplers):
            take(index, resampler.push(block))
        reporter.report("read", mixture.length / recording.sample_rate)
    if mixture.length == 0:
        raise EmptyAudioError("The recording holds no samples: there is nothing to separate.")
    for index, resampler in enumerate(resamplers):
        take(index, resampler.finish())
    non_silent = [channel for channel, peak in enumerate(peaks.tolist()) if peak > SILENCE]
    found = [deviation.deviation() for deviation in deviations]
    return Resampled(recording.sample_rate, mixture, spools, found, non_silent, home, budget)


def _windows(
    engine: Engine, source: Resampled, non_silent: list[int], plan: Sequence[Window], frames: int, device: torch.device
) -> Iterator[list[Tensor]]:
    """Yield the non-silent channels of each window, normalised, as (1, samples) for every stage."""
    if not non_silent:
        return
    scales = [safe_std(d[non_silent]).to(device, torch.float32)[:, None] for d in source.deviations]
    for window in plan:
        stages = []
        for stage, spool, scale in zip(engine.config.stages, source.stages, scales, strict=True):
            signal = spool.read(window.start * stage.W, (window.start + frames) * stage.W)
            stages.append(signal[non_silent].to(device) / scale)
        for channel in range(len(non_silent)):
            yield [signal[channel : channel + 1] for signal in stages]


def _at_rate(blocks: Iterator[Tensor], rate: int, wanted: int, rows: int, length: int) -> Iterator[Tensor]:
    """Yield blocks (channels, I, n) resampled to the recording's rate as (rows, n), with ``length`` samples in total."""
    resampler = StreamingResampler(rate, wanted, rows)
    done = 0
    for block in blocks:
        result = resampler.push(block.flatten(0, 1))[:, : length - done]
        done += result.shape[1]
        yield result
    rest = resampler.finish()[:, : length - done]
    yield rest
