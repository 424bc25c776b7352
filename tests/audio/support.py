"""Sounds, and files of them as FFmpeg writes them or cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    path: Path,
    x: torch.Tensor,
    sample_rate: int,
    codec: str,
    video: bool = False,
    options: object = None,
    sample_format: str | None = None,
) -> Path:
    """Write `x` (channels, n) with FFmpeg, after an empty picture track if `video`."""
    with av.open(str(path), "w", options=options or {}) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=sample_rate, layout=LAYOUTS[len(x)])
        stream.bit_rate = 96000 * len(x)
        if sample_format is not None:
            stream.codec_context.format = sample_format
        if video:
            for _ in range(5):
                container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(picture.encode(None))
        _encode(container, stream, x, sample_rate)
    return path


def _encode(container: Any, stream: Any, x: torch.Tensor, sample_rate: int) -> None:
    packed = np.ascontiguousarray(x.T.numpy().reshape(1, -1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(x)])
    frame.sample_rate, frame.pts = sample_rate, 0
    context = stream.codec_context
    size = context.frame_size or 1024
    resampler = av.AudioResampler(context.format.name, LAYOUTS[len(x)], sample_rate, frame_size=size)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def multiplex(path: Path, sounds: list[torch.Tensor], sample_rate: int, codec: str, default: int) -> Path:
    """Write several audio tracks, one of which is the default, into a Matroska file."""
    with av.open(str(path), "w", options={"default_mode": "passthrough"}) as container:
        streams = [container.add_stream(codec, rate=sample_rate, layout=LAYOUTS[len(x)]) for x in sounds]
        streams[default].disposition = av.stream.Disposition.default.value
        for stream, x in zip(streams, sounds, strict=True):
            _encode(container, stream, x, sample_rate)
    return path


def remux(source: Path, target: Path, shift: int = 0) -> Path:
    """Copy the packets of an audio file into another container, `shift` units of the source's time base later."""
    options = {"avoid_negative_ts": "disabled", "strict": "experimental"}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.audio[0])
        for packet in read.demux(read.streams.audio[0]):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                written.mux(packet)
    return target


def decode_with_av(path: Path) -> torch.Tensor:
    """Decode the first audio track of a file with nothing but PyAV."""
    with av.open(str(path)) as container:
        channels = len(container.streams.audio[0].layout.channels)
        parts = [f.to_ndarray().reshape(-1, channels).T if not f.format.is_planar else f.to_ndarray()
                 for f in container.decode(audio=0)]  # fmt: skip
    return torch.from_numpy(np.concatenate(parts, 1)).float()


def cut(path: Path, share: float = 2 / 3) -> Path:
    data = path.read_bytes()
    shorter = path.with_name(f"cut-{path.name}")
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


def agree(a: torch.Tensor, b: torch.Tensor) -> float:
    n = min(a.shape[1], b.shape[1])
    return float((a[:, :n] - b[:, :n]).norm() / b[:, :n].norm())
