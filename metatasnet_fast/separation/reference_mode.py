"""Separate as the authors evaluate: each channel as a whole, with the authors' resampling and its rounding.

Resampling to the network's rates follows librosa's ``fix=False``, resampling back ``fix=True``. Where the authors'
program ends with an error or gives NaN (silence, estimates shorter than the track), the result here is zeros.

``audio.resample`` computes the same filter more accurately and far faster, and differs by 4e-7. Before the network's
logarithm this difference matters: above the recording's bandwidth, the spectrogram of a float32 signal shows its
rounding, and an untrained network turned 4e-7 into 4e-3. So the authors' rounding is reproduced. The sums run in
float32, tap after tap; the weights w and the products are float64:

    y[t] = fl32(y[t] + w x), first for the left wing of the filter, from the centre outwards, then for the right wing

Source: the authors' ``evaluate.py``, ``separate_sample``; resampy 0.4.3, ``interpn.py``, ``_resample_loop``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio import fit_length, resample
from ..audio.resample import POINTS_PER_ZERO, kaiser_table
from ..errors import EmptyAudioError
from ..model.engine import Engine
from ..model.methods import CONTEXT_SECONDS, plan_chunks
from ..precision import Precision
from .outputs import SILENCE, NormalEquations, Unscaled, safe_std
from .recording import Budget, Recording, Spool
from .result import Reporter

__all__ = ["resample_as_authors", "separate_as_evaluated"]

PIECE_CPU = 2**14
"""Outputs that are computed at a time on a CPU: few enough that their sums and weights stay in a core's cache."""

PIECE_GPU = 2**20


def resample_as_authors(x: Tensor, sr_in: int, sr_out: int) -> Tensor:
    """Resample (channels, n) float32 from ``sr_in`` to ``sr_out`` hertz, bit for bit as resampy's ``kaiser_best``.

    The result is (channels, floor(n sr_out / sr_in)).
    """
    if sr_in == sr_out:
        return x.clone()
    ratio = float(sr_out) / sr_in
    scale = min(1.0, ratio)
    step = int(scale * POINTS_PER_ZERO)
    table = torch.from_numpy(kaiser_table().copy())
    if ratio < 1:
        table = ratio * table
    table = torch.stack([table, torch.diff(table, append=table[-1:])], dim=1).to(x.device)
    reach = len(table) // step + 1
    padded = F.pad(x, (reach, reach)).double()
    length = int(x.shape[-1] * float(sr_out) / float(sr_in))
    piece = PIECE_CPU if x.device.type == "cpu" else PIECE_GPU
    result = x.new_zeros(x.shape[0], length)
    for start in range(0, length, piece):
        stop = min(start + piece, length)
        time = torch.arange(start, stop, device=x.device, dtype=torch.float64) * (1.0 / ratio)
        centre = time.long()
        fraction = scale * (time - centre)
        sums = result[:, start:stop]
        _add_wing(sums, padded, centre + reach, -1, fraction, table, step)
        _add_wing(sums, padded, centre + reach + 1, 1, scale - fraction, table, step)
    return result


def _add_wing(
    sums: Tensor, padded: Tensor, first: Tensor, direction: int, fraction: Tensor, table: Tensor, step: int
) -> None:
    """Add the products of one wing of the filter to the float32 ``sums``, in place.

    Args:
        sums: (channels, n).
        padded: the signal (channels, samples), float64, with zeros around it, which add nothing.
        first: (n,): for each output, the place in ``padded`` of the wing's first sample.
        direction: -1 for the left wing, 1 for the right one.
        fraction: (n,): distance of that sample from the output, in zero crossings of the filter.
        table: (points, 2): values of the filter, and differences to the next value.
        step: points of the table from one sample to the next.
    """
    index = fraction * POINTS_PER_ZERO
    offset = index.long()
    eta = index - offset
    count = (len(table) - offset) // step
    for tap in range(int(count.max())):
        window, delta = table[(offset + tap * step).clamp_(max=len(table) - 1)].unbind(1)
        weight = window + eta * delta
        weight = torch.where(tap < count, weight, 0.0)
        samples = padded[:, (first + direction * tap).clamp_(0, padded.shape[1] - 1)]
        sums.copy_(sums + weight * samples)


CHUNKS = 8


def separate_as_evaluated(engine: Engine, recording: Recording, device: torch.device, reporter: Reporter) -> Unscaled:
    """Separate a recording as the authors' evaluation does.

    Raises:
        EmptyAudioError: for a recording without samples.
        MetaTasNetError: if the network's output is not finite.
    """
    config = engine.config
    rate, output_rate = recording.sample_rate, config.output_rate
    blocks = list(recording.clean_blocks(device))
    if not blocks:
        raise EmptyAudioError("The recording holds no samples: there is nothing to separate.")
    waveform = torch.cat(blocks, dim=1)
    length = waveform.shape[1]
    reporter.total = length / rate
    reporter.report("read", reporter.total)

    signals = stage_signals(engine, waveform, rate)
    # A single sample has no standard deviation.
    deviations = [signal.std(dim=-1, correction=min(1, signal.shape[-1] - 1)) for signal in signals]
    non_silent = [channel for channel, peak in enumerate(waveform.abs().amax(1).tolist()) if peak > SILENCE]
    shortest = config.shortest_frames * config.W
    equations, estimates = NormalEquations(len(non_silent), len(config.instruments), config.added_instruments), []
    for index, channel in enumerate(non_silent):
        mixes = []
        for stage, (signal, deviation) in enumerate(zip(signals, deviations, strict=True)):
            mix = signal[channel] / safe_std(deviation[channel])
            mixes.append(fit_length(mix, max(mix.shape[-1], shortest * 2**stage))[None, None])
        separated = _infer(engine, mixes, reporter, (index, len(non_silent)))
        fixed = resample(separated, output_rate, rate, length=math.ceil(separated.shape[-1] * rate / output_rate))
        estimates.append(fit_length(fixed[:, :length], length))
    budget = Budget(None)
    mixture, stems = Spool(recording.channels, budget), Spool(len(config.instruments) * len(non_silent), budget)
    mixture.append(waveform)
    if non_silent:
        stacked = torch.stack(estimates)
        equations.add(stacked, waveform[non_silent])
        stems.append(stacked.flatten(0, 1).float())
    return Unscaled.solve(stems, mixture, non_silent, equations, config)


def stage_signals(engine: Engine, waveform: Tensor, rate: int) -> list[Tensor]:
    """Resample a waveform to the rate of every stage, and return the signals in the order of the stages.

    The signal of stage s is padded or cut to (channels, (n_0 + 1) 2^s), where n_0 is the length at the first stage's
    rate. It is float64 if that is the engine's precision, else float32.
    """
    dtype = torch.float64 if engine.precision is Precision.float64 else torch.float32
    signals = [resample_as_authors(waveform, rate, stage.sampling_rate).to(dtype) for stage in engine.config.stages]
    base = signals[0].shape[-1] + 1
    return [fit_length(signal, base * 2**index) for index, signal in enumerate(signals)]


def _infer(engine: Engine, mixes: list[Tensor], reporter: Reporter, position: tuple[int, int]) -> Tensor:
    """Return what ``MultiTasNet.inference(mixes, n_chunks=8)[-1]`` returns, as (I, samples); only the last stage is
    decoded.

    ``position`` is the number of the channel and the number of all channels, for the report of the progress.
    """
    config, last = engine.config, engine.config.stages_num - 1
    channel, channels = position
    parts = []
    context = CONTEXT_SECONDS * config.sampling_rate
    for number, chunk in enumerate(plan_chunks(mixes[0].shape[-1], CHUNKS, context, config.W), start=1):
        parts.append(chunk.separate(engine, mixes, {last})[last][0, :, 0])
        done = (channel + number / CHUNKS) / channels
        reporter.report("separate", done * (reporter.total or 0.0))
    return torch.cat(parts, dim=-1)
