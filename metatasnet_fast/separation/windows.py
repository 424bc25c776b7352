"""Plan the windows of a recording, in latent frames, and join the parts that are kept.

All windows of a recording have one length, so that they fit one batch. Their starts are spread evenly: frames that only
the last window would otherwise repeat become context for all. Neighbours overlap by ``2 context + fade`` or more; the
frames in the middle of the overlap fade from one window to the other, and the ``context`` on both sides is discarded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import MetaTasNetConfig
from ..errors import ConfigError

__all__ = ["Window", "WindowShape", "default_shape", "plan_windows", "receptive_frames", "shortest_frames", "stitch"]

WINDOW_SECONDS = 24.0
"""Seconds of a window. The group norms see a whole window. With half-trained weights, on four songs, SDR against
reference mode changed on average by -0.11 dB with windows of 8 s, -0.05 with 16 s, +0.03 with 24 s and +0.07 with 32 s;
see docs/separation.md."""

CONTEXT_SECONDS = 0.8
"""Seconds of context on each side: more than one stage's receptive field (0.47 s) and half an STFT frame. All stages
together see further, but in the same measurement the edge of a window had no effect 0.3 s away from it."""

FADE_SECONDS = 0.02


@dataclass(frozen=True)
class WindowShape:
    """Lengths in latent frames: of a window, of the context discarded at each inner side, and of the fade between
    windows."""

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
    """Frames to process from ``start`` on; ``begin`` to ``stop`` are kept. All are counted from the recording's start.

    The first ``fade`` kept frames are faded in from the window before, if there is one.
    """

    start: int
    begin: int
    stop: int


def plan_windows(total: int, shape: WindowShape) -> list[Window]:
    """Cover ``total`` frames, each exactly once, with windows of ``min(total, shape.window)`` frames."""
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
    """Return the latent frames on each side that an output sample depends on, without the group norms, which see the
    whole window.

    The result is a sum: the contexts of all masking networks, since each stage reads the one before; half an STFT frame and the
    hop over which it is interpolated; and the longest filters of one encoder and one decoder.
    """
    networks = sum(sum(stage.dilations) for stage in config.stages)
    spectrogram = max(math.ceil((stage.n_fft / 2 + stage.hop) / stage.W) for stage in config.stages)
    filters = max(math.ceil(stage.kernel_sizes[-1] / stage.W) for stage in config.stages)
    return networks + spectrogram + 2 * filters


def shortest_frames(config: MetaTasNetConfig) -> int:
    """Return the fewest latent frames that every stage can process."""
    return max(-(-stage.shortest // stage.W) for stage in config.stages)


def default_shape(config: MetaTasNetConfig) -> WindowShape:
    """Return the shape that ``fast`` mode uses.

    The window is a whole number of STFT hops: the network stretches the spectrogram's frames over the latent frames, and
    only then do both end together.
    """
    base = config.stage(0)
    unit = math.lcm(base.W, base.hop) // base.W
    rate = base.sampling_rate / base.W
    window = max(1, round(WINDOW_SECONDS * rate / unit)) * unit
    context = min(math.ceil(CONTEXT_SECONDS * rate), receptive_frames(config))
    return WindowShape(max(window, unit * math.ceil(4 * context / unit)), context, math.ceil(FADE_SECONDS * rate))


def stitch(estimates: Iterator[Tensor], plan: Sequence[Window], channels: int, hop: int, fade: int) -> Iterator[Tensor]:
    """Join window after window; between two, the first ``fade`` frames change linearly from the old window to the new.

    Where both agree, the result is exactly theirs.

    Args:
        estimates: (stems, samples) of the first window's channels, then the second's, and so on.
        hop: samples per latent frame.

    Returns:
        (channels, stems, n) blocks, which together have ``hop`` samples for every frame of the plan.
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
