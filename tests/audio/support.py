"""Sounds, and files of them as FFmpeg writes them or cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av", reason="av is not installed")

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tones(channels: int, n: int, sample_rate: int) -> torch.Tensor:
    """Another tone in every channel (all below 120 Hz, so that a low-frequency channel keeps its own)."""
    t = torch.arange(n) / sample_rate
    return torch.stack([0.4 * torch.sin(2 * torch.pi * (40 + 10 * c) * t) for c in range(channels)])


def encode(
    path: Path, x: torch.Tensor, sample_rate: int, codec: str, video: bool = False, options: object = None
) -> Path:
    """Write `x` (channels, n) with FFmpeg, after an empty picture track if `video`."""
    with av.open(str(path), "w", options=options or {}) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=sample_rate, layout=LAYOUTS[len(x)])
        stream.bit_rate = 96000 * len(x)
        if video:
            for _ in range(5):
                container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(picture.encode(None))
        format = stream.codec_context.format.name
        packed = np.ascontiguousarray(x.T.numpy().reshape(1, -1), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(x)])
        frame.sample_rate, frame.pts = sample_rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=format, layout=LAYOUTS[len(x)], rate=sample_rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float = 2 / 3) -> Path:
    data = path.read_bytes()
    shorter = path.with_name(f"cut-{path.name}")
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


def agree(a: torch.Tensor, b: torch.Tensor) -> float:
    n = min(a.shape[1], b.shape[1])
    return float((a[:, :n] - b[:, :n]).norm() / b[:, :n].norm())
