"""Separate in windows: a first pass resamples and measures, a second pass runs the network.

    blocks -> resample to every stage's rate -> spools, standard deviations
    windows of the spools, normalised -> network -> stitch -> resample back -> spool, normal equations -> gains

Only the spools grow with the recording. When they need more memory than is allowed, they move into files.

Windows are planned in latent frames. All windows of a recording have one length, so that they fit into one batch. Their
starts are spread evenly, so that all neighbours overlap by about the same number of frames: ``2 context + fade`` or
more. The frames in the middle of an overlap fade from one window to the other, and the ``context`` on both sides is
discarded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio import StreamingResampler
from ..config import MetaTasNetConfig
from ..errors import ConfigError, EmptyAudioError
from ..model.engine import Engine
from ..model.methods import RunningDeviation
from .devices import BatchRunner
from .outputs import SILENCE, NormalEquations, Unscaled, safe_std
from .recording import Budget, Recording, Spool
from .result import Reporter

__all__ = [
    "Window", "WindowShape", "default_shape", "plan_windows", "receptive_frames", "resample", "separate_in_windows",
    "separate_resampled", "stitch",
]  # fmt: skip

WINDOW_SECONDS = 24.0
"""Seconds of a window. It matters because the group norms see the whole window. With half-trained weights, on four
songs, the SDR differed from that of reference mode on average by -0.11 dB with windows of 8 s, -0.05 dB with 16 s,
+0.03 dB with 24 s and +0.07 dB with 32 s; see docs/separation.md."""

CONTEXT_SECONDS = 0.8
"""Seconds of context on each side: more than the receptive field of one stage (0.47 s) and half an STFT frame. All
stages together see further, but in the same measurement the edge of a window had no effect at a distance of 0.3 s."""

FADE_SECONDS = 0.02


@dataclass(frozen=True)
class WindowShape:
    """Lengths in latent frames: of a window, of the context that is discarded where a window has a neighbour, and of
    the fade between two windows."""

    window: int
    context: int
    fade: int

    def __post_init__(self) -> None:
        if self.window < self.overlap + 2 * self.fade + 1 or self.context < 0 or self.fade < 0:
            raise ConfigError(f"A window of {self.window} frames cannot hold twice {self.context} frames of context.")

    @property
    def overlap(self) -> int:
        """Fewest frames that two neighbouring windows share."""
        return 2 * self.context + self.fade


@dataclass(frozen=True)
class Window:
    """A window that begins at frame ``start``, of which the frames ``begin`` to ``stop`` are kept.

    All three are counted from the start of the recording. If there is a window before, the first ``fade`` kept frames
    fade from that window to this one.
    """

    start: int
    begin: int
    stop: int


def plan_windows(total: int, shape: WindowShape) -> list[Window]:
    """Return windows of ``min(total, shape.window)`` frames whose kept frames cover ``total`` frames, each exactly
    once."""
    if total <= shape.window:
        return [Window(0, 0, total)]
    count = -(-(total - shape.overlap) // (shape.window - shape.overlap))
    last = total - shape.window
    starts = [(i * last) // (count - 1) for i in range(count)]
    seams = [
        right + (left + shape.window - right - shape.fade) // 2 for left, right in zip(starts, starts[1:], strict=False)
    ]
    return [Window(*edges) for edges in zip(starts, [0, *seams], [*seams, total], strict=True)]


def receptive_frames(config: MetaTasNetConfig) -> int:
    """Return how many latent frames on each side can affect an output sample. Group norms are left out: they read the
    whole window.

    The result is a sum: the contexts of all masking networks, since each stage reads the previous one; half an STFT
    frame, and the hop over which it is interpolated; and the longest filters of one encoder and one decoder.
    """
    networks = sum(sum(stage.dilations) for stage in config.stages)
    spectrogram = max(math.ceil((stage.n_fft / 2 + stage.hop) / stage.W) for stage in config.stages)
    filters = max(math.ceil(stage.kernel_sizes[-1] / stage.W) for stage in config.stages)
    return networks + spectrogram + 2 * filters


def default_shape(config: MetaTasNetConfig) -> WindowShape:
    """Return the shape of the windows in ``fast`` mode.

    A window is a whole number of STFT hops: the network stretches the spectrogram's frames over the latent frames, and
    both end together only if the number of hops is whole.
    """
    base = config.stage(0)
    unit = math.lcm(base.W, base.hop) // base.W
    rate = base.sampling_rate / base.W
    window = max(1, round(WINDOW_SECONDS * rate / unit)) * unit
    context = min(math.ceil(CONTEXT_SECONDS * rate), receptive_frames(config))
    return WindowShape(max(window, unit * math.ceil(4 * context / unit)), context, math.ceil(FADE_SECONDS * rate))


def stitch(estimates: Iterator[Tensor], plan: Sequence[Window], channels: int, hop: int, fade: int) -> Iterator[Tensor]:
    """Join the windows, and yield the result in blocks.

    Between two windows, ``fade`` frames change linearly from the old window to the new one. Where the two agree, the
    result is exactly their common value.

    Args:
        estimates: (stems, samples) for each channel of the first window, then of the second window, and so on.
        plan: the windows.
        hop: samples per latent frame.
        fade: latent frames.

    Returns:
        blocks (channels, stems, n), which together have ``hop`` samples for every frame of the plan.
    """
    ramp: Tensor | None = None
    tail: Tensor | None = None
    for index, window in enumerate(plan):
        block = torch.stack([next(estimates) for _ in range(channels)])
        begin, stop = (window.begin - window.start) * hop, (window.stop - window.start) * hop
        kept = block[..., begin:stop]
        if tail is not None:
            if ramp is None:
                ramp = (torch.arange(fade * hop, device=kept.device, dtype=kept.dtype) + 0.5) / (fade * hop)
            head = kept[..., : fade * hop]
            kept = torch.cat([tail + ramp * (head - tail), kept[..., fade * hop :]], dim=-1)
        tail = block[..., stop : stop + fade * hop].clone() if index + 1 < len(plan) else None
        yield kept


@dataclass
class Resampled:
    """A recording at every stage's rate."""

    rate: int
    """Sample rate of the recording, in Hz."""
    mixture: Spool
    stages: list[Spool]
    deviations: list[Tensor]
    """Standard deviations of the channels for every stage, (channels,), float64."""
    non_silent: list[int]
    """Indices of the channels that are not silent."""
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
    """Separate a recording in windows, and return its stems before their gains are applied.

    Args:
        runner: runs the network on the windows.
        shape: shape of the windows.
        device: device of the network.
        home: device that keeps the signals between the passes: ``device`` or the CPU.

    Raises:
        EmptyAudioError: for a recording without samples.
        MetaTasNetError: if a window does not fit into memory, or the network's output is not finite.
    """
    source = resample(engine, recording, device, home, budget, reporter)
    return separate_resampled(engine, runner, shape, source, device, reporter)


def separate_resampled(
    engine: Engine, runner: BatchRunner, shape: WindowShape, source: Resampled, device: torch.device, reporter: Reporter
) -> Unscaled:
    """Separate a resampled recording in windows, then free the resampled signals: the second part of
    :func:`separate_in_windows`."""
    config, rate, length = engine.config, source.rate, source.mixture.length
    reporter.total = length / rate
    non_silent = source.non_silent

    # Cover one sample more than the recording has at the first stage's rate, so that resampling back gives enough
    # samples.
    frames = -(-(length * config.sampling_rate // rate + 1) // config.W)
    plan = plan_windows(max(frames, config.shortest_frames), shape)
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
    """Yield each non-silent channel of each window: a list of (1, samples) for every stage, divided by the deviations.

    ``frames`` is the length of a window.
    """
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
    """Resample blocks (channels, I, n) from ``rate`` to ``wanted`` hertz, and yield the results as (rows, n).

    ``rows`` is channels times I. The results have ``length`` samples in total.
    """
    resampler = StreamingResampler(rate, wanted, rows)
    done = 0
    for block in blocks:
        result = resampler.push(block.flatten(0, 1))[:, : length - done]
        done += result.shape[1]
        yield result
    rest = resampler.finish()[:, : length - done]
    yield rest
