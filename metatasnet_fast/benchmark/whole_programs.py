"""Cases a user meets: separating a recording from samples to stems, and the first inference of a new process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..backends import use_backend
from ..model import MultiTasNet, load_checkpoint
from ..model.methods import CONTEXT_SECONDS, plan_chunks
from ..precision import Precision
from ..separation import Separator
from ..separation.reference_mode import CHUNKS
from ..separation.separator import Mode
from ..separation.windows import default_shape, plan_windows
from . import roofline
from .cases import Call, Case, Implementation, Participants
from .parity import Outputs
from .synthetic import mixtures, sources, varied
from .workloads import frames_of, oracle

__all__ = ["first_call_case", "separation_case"]


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
    """Return the case of a new Python process, from the start of the interpreter: import, load a checkpoint, separate
    one mono window, write it."""
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
            # The folder exists as long as this function does.
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


if __name__ == "__main__":
    _separate_once(*sys.argv[1:])
