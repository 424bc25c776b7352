"""One HTML file with players and spectrograms in it: it needs no network and no other file."""

from __future__ import annotations

import base64
import math
import string
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from torch import Tensor

from .._io import write_atomically
from ..audio import write_audio
from ..errors import OutputError
from .png import encode_png
from .spectrogram import RANGE_DB, Axis, levels

__all__ = ["Listening", "write_page"]

ROWS, COLUMNS = 180, 1000


class _Template(string.Template):
    delimiter = "@@"


@dataclass(frozen=True)
class Listening:
    """What is to be heard: ``signals`` (channels, samples) by name, the mixture first, and what is said about it."""

    signals: Mapping[str, Tensor]
    sample_rate: int
    title: str
    facts: Mapping[str, str]
    """Short label to short text."""
    note: str = ""

    @property
    def duration(self) -> float:
        return next(iter(self.signals.values())).shape[1] / self.sample_rate


def write_page(listening: Listening, path: Path) -> None:
    """Write the page; it appears whole, or the one that was there stays.

    Raises:
        OutputError: if it cannot be written, or MP3 cannot hold the signals' sample rate or channels.
    """
    pictures = levels(listening.signals, listening.sample_rate, ROWS, COLUMNS)
    mixture = next(iter(listening.signals))
    level = _level(listening.signals[mixture])
    rows = []
    for name, signal in listening.signals.items():
        relative = _level(signal) - level
        rows.append(
            _row(
                name,
                "the recording" if name == mixture else _decibels(relative),
                _data("image/png", encode_png(pictures[name])),
                _data("audio/mpeg", _mp3(signal, listening.sample_rate)),
                Axis.of(listening.sample_rate),
                original=name == mixture,
            )
        )
    template = resources.files("metatasnet_fast").joinpath("assets/demo/page.html").read_text("utf-8")
    page = _Template(template).substitute(
        title=escape(listening.title),
        facts="".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in listening.facts.items()),
        note=escape(listening.note),
        rows="".join(rows),
        times=_times(listening.duration),
        range=f"{RANGE_DB:g}",
        duration=f"{listening.duration:.3f}",
    )
    try:
        write_atomically(path, page)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error


def _row(name: str, remark: str, picture: str, sound: str, axis: Axis, original: bool) -> str:
    label = name.capitalize()
    ticks = "".join(f'<span style="bottom:{100 * at:.2f}%">{text}</span>' for text, at in axis.ticks().items())
    lines = "".join(f'<i style="bottom:{100 * at:.2f}%"></i>' for at in axis.ticks().values())
    buttons = f'<button type="button" data-solo="{name}" aria-pressed="{str(original).lower()}">'
    buttons += "Listen" if original else "Solo"
    buttons += f'<span class="hidden"> {label}</span></button>'
    if not original:
        buttons += f'<button type="button" data-mute="{name}" aria-pressed="false">Mute'
        buttons += f'<span class="hidden"> {label}</span></button>'
    return (
        f'<section class="track" data-track="{name}" aria-label="{label}">'
        f'<div class="side"><h2>{label}</h2><p>{remark}</p><div class="buttons">{buttons}</div></div>'
        f'<div class="axis" aria-hidden="true">{ticks}</div>'
        f'<div class="picture"><img alt="Spectrogram of {name}" src="{picture}">{lines}<b></b></div>'
        f'<audio controls preload="auto" aria-label="{label}" src="{sound}"></audio></section>\n'
    )


def _times(duration: float) -> str:
    step = next((s for s in (1, 2, 5, 10, 15, 30) if duration / s <= 10), 60)
    marks = range(0, math.floor(duration) + 1, step)
    return "".join(
        f'<span{" class=end" if t > 0.98 * duration else ""} style="left:{100 * t / duration:.2f}%">'
        f"{t // 60}:{t % 60:02d}</span>"
        for t in marks
    )


def _decibels(value: float) -> str:
    return f"{value:+.1f} dB".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "silent"


def _level(signal: Tensor) -> float:
    """Mean power in decibels, minus infinity for silence."""
    power = float(signal.double().square().mean())
    return 10 * math.log10(power) if power > 0 else -math.inf


def _mp3(signal: Tensor, sample_rate: int) -> bytes:
    """MP3: the one compressed format that every browser plays."""
    with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as folder:
        path = Path(folder) / "signal.mp3"
        write_audio(path, signal, sample_rate)
        return path.read_bytes()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
