"""Run the suite of cases in one of its sizes. Make the cases of whole programs: the separation of a recording, from
samples to stems, and the first inference of a new process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backends import use_backend
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet, load_checkpoint
from ..model.methods import CONTEXT_SECONDS, plan_chunks
from ..precision import Precision
from ..separation import Separator
from ..separation.fast_mode import default_shape, plan_windows
from ..separation.reference_mode import CHUNKS
from ..separation.separator import Mode
from . import roofline, synthetic
from .cases import Call, Case, Implementation, Outputs, Participants
from .machine import describe
from .measure import Effort, measure
from .results import Row
from .roofline import measure_peaks
from .synthetic import mixtures, sources, varied
from .workloads import frames_of, inference_case, oracle, preparation_case, training_case

__all__ = ["SIZES", "TINY", "cases", "first_call_case", "measure_all", "run", "separation_case"]

# With 8 bands, eager PyTorch (2.13, bfloat16, AMX) writes beyond the memory of the weight gradient of 2,049 bins.
TINY = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=16)
"""Sizes of a network for tests of the program; their times say nothing about the real network."""


@dataclass(frozen=True)
class Size:
    """Sizes of the cases.

    Args:
        config: the network.
        windows: for ``cpu`` and ``cuda``, the batches of inference: the number of windows and the seconds of a window.
        training: for ``cpu`` and ``cuda``, the items of a training step and the seconds of an item.
        recording: for ``cpu`` and ``cuda``, the seconds of the separated stereo recording; 0 leaves the recording out.
        effort: rounds and seconds for each case.
        compiled: whether networks that `torch.compile` has compiled take part.
        first_call: seconds of the window that a new process separates; 0 leaves new processes out.
    """

    config: MetaTasNetConfig
    windows: dict[str, Sequence[tuple[int, float]]]
    training: dict[str, tuple[int, float]]
    recording: dict[str, float]
    effort: Effort
    compiled: bool = True
    first_call: float = 0.0


SIZES = {
    "tiny": Size(
        TINY,
        windows={"cpu": ((1, 0.4),), "cuda": ((1, 0.4),)},
        training={"cpu": (2, 0.4), "cuda": (2, 0.4)},
        recording={"cpu": 0.5, "cuda": 0.5},
        effort=Effort(0.3, 5, 20),
        compiled=False,
    ),
    # torch.compile takes minutes for the whole network on a CPU, longer than a quick run may last.
    "quick": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 2.0),), "cuda": ((8, 2.0),)},
        training={"cpu": (1, 1.0), "cuda": (4, 4.0)},
        recording={"cpu": 0.0, "cuda": 0.0},
        effort=Effort(5, 5, 20),
        compiled=False,
    ),
    "full": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 30.0), (4, 6.0), (1, 2.0)), "cuda": ((1, 24.0), (20, 24.0))},
        training={"cpu": (2, 4.0), "cuda": (12, 8.0)},
        recording={"cpu": 12.0, "cuda": 240.0},
        effort=Effort(20, 5, 50),
        first_call=6.0,
    ),
}


def separation_case(
    network: MultiTasNet, participants: Participants, mode: Mode, channels: int, seconds: float
) -> Case:
    """Return the case of a whole ``Separator`` at the network's output rate: resampling, windows, stitching, gains."""
    config, device = network.config, participants.device
    rate = config.output_rate
    samples = frames_of(network, seconds) * config.stages[-1].W
    base = mixtures(sources(config, channels, samples >> (config.stages_num - 1), seed=5))[-1][:, 0].float() / 8
    inputs = [base.to(device)]
    there = copy.deepcopy(network).to(device)

    def separated(separator: Separator, waveform: Tensor) -> Outputs:
        separation = separator.separate(waveform, rate)
        return {"stems": [separation[name] for name in separator.stems]}

    def expected(values: Sequence[Tensor]) -> Outputs:
        return separated(Separator(there, device, "reference", "float64", mode), values[0].to(device))

    def make(name: str, precision: Precision) -> Call:
        separator = Separator(there, device, name, precision, mode)
        return lambda: separated(separator, inputs[0])

    frames = _processed_frames(network, mode, samples // config.stages[-1].W)
    duration = samples / rate
    return Case(
        name=f"separate {mode} {channels}ch {duration:g}s",
        job=f"separation, {mode} mode",
        sizes={"channels": channels, "seconds": duration, "sample_rate": rate, "frames processed": frames * channels},
        audio_seconds=channels * duration,
        inputs=inputs,
        draw=varied([base], [1]),
        expected=expected,
        work=lambda precision: roofline.inference(config, frames, channels, precision.storage.itemsize),
        implementations=_named(participants, network, make),
    )


def _processed_frames(network: MultiTasNet, mode: Mode, frames: int) -> int:
    """Return how many latent frames of a channel go through the network, context included."""
    config = network.config
    if mode == "fast":
        shape = default_shape(config)
        return len(plan_windows(frames, shape)) * min(frames, shape.window)
    chunks = plan_chunks(frames * config.W, CHUNKS, CONTEXT_SECONDS * config.sampling_rate, config.W)
    return sum(chunk.end - chunk.start for chunk in chunks) // config.W


def _named(
    participants: Participants, network: MultiTasNet, make: Callable[[str, Precision], Call]
) -> list[Implementation]:
    """Return the implementations for a job that chooses its backend by name: only registered backends take part."""
    return [
        Implementation(name, precision, lambda n=name, p=precision: make(n, p))  # type: ignore[misc]
        for name, _, precision in participants.serving(network.config, False)
        if name not in participants.extra
    ]


def first_call_case(network: MultiTasNet, participants: Participants, seconds: float) -> Case:
    """Return the case of a new Python process that imports the library, loads a checkpoint, separates one mono window
    and writes the result. The time begins with the start of the interpreter."""
    config, device = network.config, participants.device
    frames, last = frames_of(network, seconds), config.stages_num - 1
    base = [mix.float() for mix in mixtures(sources(config, 1, frames * config.W, seed=6))]
    inputs = [mix.to(device) for mix in base]
    folder = tempfile.TemporaryDirectory(prefix="metatasnet-fast-bench-")
    checkpoint = Path(folder.name) / "checkpoint.pt"
    torch.save({"state_dict": network.state_dict(), "args": config.to_namespace()}, checkpoint)

    @torch.no_grad()
    def expected(values: Sequence[Tensor]) -> Outputs:
        mixes = [value.to(device, torch.float64) for value in values]
        return {"estimate": [oracle(network, participants).separate(mixes, {last})[last]]}

    def make(name: str, precision: Precision) -> Call:
        heard, found = Path(folder.name) / "mixtures.pt", Path(folder.name) / "estimate.pt"
        arguments = [checkpoint, heard, found, name, precision.value, device, torch.get_num_threads()]
        command = [sys.executable, "-m", __name__, *map(str, arguments)]
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}

        def call() -> Outputs:
            torch.save([mix.cpu() for mix in inputs], heard)
            found.unlink(missing_ok=True)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the new process ended with {done.returncode}: {done.stderr.strip()[-200:]}")
            # This use of ``folder`` keeps it: the folder is removed together with this function.
            return {"estimate": [torch.load(folder.name + "/estimate.pt", weights_only=True)]}

        return call

    duration = frames * config.W / config.sampling_rate
    return Case(
        name=f"first call {duration:g}s",
        job="first call of a new process",
        sizes={"batch": 1, "seconds": duration},
        audio_seconds=duration,
        inputs=inputs,
        draw=varied(base, [2**s for s in range(config.stages_num)]),
        expected=expected,
        work=lambda precision: roofline.inference(config, frames, 1, precision.storage.itemsize),
        implementations=_named(participants, network, make),
        whole_process=True,
    )


def _separate_once(
    checkpoint: str, heard: str, found: str, backend: str, dtype: str, device: str, threads: str
) -> None:
    """Do the work of the new process of :func:`first_call_case`."""
    torch.set_num_threads(int(threads))
    network = load_checkpoint(checkpoint).to(device)
    mixes = [mix.to(device) for mix in torch.load(heard, weights_only=True)]
    with torch.no_grad(), use_backend(backend, dtype):
        last = network.config.stages_num - 1
        estimate = network.engine().separate(mixes, {last})[last]
    torch.save(estimate.cpu(), found)


def cases(size: Size, network: MultiTasNet, participants: Participants) -> Iterator[Case]:
    """Yield the cases in the order in which they are measured; each is built only when its turn comes."""
    kind = participants.device.type
    for shape in size.windows[kind]:
        yield inference_case(network, participants, *shape)
    yield preparation_case(network, participants)
    yield training_case(network, participants, *size.training[kind])
    modes: tuple[Mode, ...] = ("fast", "reference")
    for mode in modes if size.recording[kind] else ():
        yield separation_case(network, participants, mode, 2, size.recording[kind])
    if size.first_call:
        yield first_call_case(network, participants, size.first_call)


def measure_all(
    chosen: Iterable[Case],
    device: torch.device,
    precisions: Sequence[Precision],
    tiny: bool,
    effort: Effort,
    keep: Callable[[list[Row]], object],
    tell: Callable[[str], object] = lambda line: None,
) -> list[Row]:
    """Measure cases one after the other, with the peaks of the device.

    Args:
        keep: function that gets all rows known so far, after every round.
        tell: function that gets a line about the next step.
    """
    machine = describe(device)
    tell("peaks: a large copy and matrix products")
    peaks = measure_peaks(device, precisions, tiny)
    done: list[Row] = []

    def so_far(rows: list[Row]) -> None:
        for row in rows:
            row.machine, row.peaks = machine, peaks.to_dict()
        keep([*done, *rows])

    for case in chosen:
        tell(case.name)
        # A case that starts a process for every call gets the fewest rounds.
        done += measure(case, peaks, Effort(0, 3, 3) if case.whole_process else effort, so_far)
        so_far([])
    return done


def run(
    size: Size,
    participants: Participants,
    tell: Callable[[str], object] = lambda line: None,
    only: str = "",
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Measure the cases of a size whose names contain ``only``; for the rest see :func:`measure_all`.

    Raises:
        ConfigError: if no name contains ``only``.
    """
    names: list[str] = []

    def chosen() -> Iterator[Case]:
        for case in cases(size, synthetic.network(size.config), participants):
            names.append(case.name)
            if only in case.name:
                yield case

    tiny = size.config == TINY
    done = measure_all(chosen(), participants.device, participants.precisions, tiny, size.effort, keep, tell)
    if not done:
        raise ConfigError(f"No case's name contains {only!r}; there are: {', '.join(names)}.")
    return done


if __name__ == "__main__":
    _separate_once(*sys.argv[1:])
