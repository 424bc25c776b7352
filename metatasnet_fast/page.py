"""Make a page to hear and see a separation; draw a picture of it.

A page is one HTML file, or an HTML file with a folder of sounds. It needs no network and no server. Signals are MP3,
the one compressed format that every browser decodes. The browser plays them from one clock, so they stay aligned to the
sample. The template is for Jinja2, which torch brings. Spectrograms have a logarithmic frequency axis, and are PNGs
that are made without a library.

Sources: W3C, "Portable Network Graphics (PNG) Specification (Second Edition)", 2003. The colours are nine points of
magma by van der Walt and Smith (CC0): even steps in level look like even steps in brightness, also to the colour-blind
and in grey.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from . import __version__
from ._extras import require
from ._io import reporting_write_errors, write_atomically
from .audio import read_audio, write_audio
from .errors import OutputError

__all__ = [
    "RANGE_DB", "Axis", "Listening", "encode_png", "levels", "listen_to", "magma", "write_page", "write_picture",
]  # fmt: skip

Sound: TypeAlias = str | os.PathLike[str] | Tensor
"""A file, or a signal (channels, samples)."""

ROWS, COLUMNS = 180, 1000
PICTURE_SIZE = (200, 250)
"""Rows and columns of a spectrogram in the picture."""
MOST_COLUMNS = 8000
"""Most columns of a spectrogram. Up to this, a song longer than 100 s has ten columns a second, for a zoomed view."""


@dataclass(frozen=True)
class Listening:
    """Content of a page: ``signals`` (channels, samples) by name, the mixture first, and the texts of the page."""

    signals: Mapping[str, Tensor]
    sample_rate: int
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short texts about the separation, by short labels."""
    note: str = ""
    references: Mapping[str, Tensor] = field(default_factory=dict)
    """True stems by name, to which the listener can switch, to compare."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``scores[stem][metric]``, shown next to the stem. BSSEval, SI-SDR and log-WMSE are in dB, other metrics out of
    100."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Relative addresses of the files that a listener can save, by signal. For other signals the page offers the sound
    that it plays."""

    @property
    def duration(self) -> float:
        return next(iter(self.signals.values())).shape[1] / self.sample_rate


def write_page(listening: Listening, path: Path, *, in_files: bool = False) -> None:
    """Write the page in one step. If that fails, the old page stays.

    Args:
        path: path of the HTML file.
        in_files: put every sound into a script of its own, in a folder next to the page, instead of into the page.

    Raises:
        OutputError: if the page cannot be written, or MP3 cannot hold the signals' sample rate or channels.
    """
    sounds: dict[str, str] = {}
    columns = min(MOST_COLUMNS, max(COLUMNS, round(10 * listening.duration)))
    pictures = levels(listening.signals, listening.sample_rate, ROWS, columns)
    mixture = next(iter(listening.signals))
    level = _level(listening.signals[mixture])
    tracks: list[dict[str, Any]] = []
    for number, (name, signal) in enumerate(listening.signals.items()):
        relative = _level(signal) - level
        sources = {"sound": signal}
        if name in listening.references:
            sources["reference"] = listening.references[name]
        data = {}
        for what, source in sources.items():
            key = f"{number}-{what}"
            sounds[key] = _data("audio/mpeg", _mp3(source, listening.sample_rate))
            data[what] = key if in_files else sounds[key]
        tracks.append(
            {
                "name": name,
                "label": name[:1].upper() + name[1:],
                "original": name == mixture,
                "remark": "as it is" if name == mixture else _decibels(relative),
                "scores": [(metric, _number(value)) for metric, value in listening.scores.get(name, {}).items()],
                "key": str(number) if 1 <= number <= 9 else "",
                "reference": "reference" in data,
                "picture": _data("image/png", encode_png(pictures[name])),
                "file": Path(listening.files.get(name, f"{name}.mp3")).name,
                "link": quote(listening.files[name]) if name in listening.files else "",
                "data": _markup(json.dumps(data)),
            }
        )
    scripts = [quote(f"{path.stem}-sounds/{key}.js") for key in sounds] if in_files else []
    template = require("jinja2", "The page").Template(_asset("page.html"), autoescape=True, trim_blocks=True)
    page = template.render(
        title=listening.title,
        facts=listening.facts,
        note=listening.note,
        tracks=tracks,
        ticks=[(text, round(100 * at, 2)) for text, at in Axis.of(listening.sample_rate).ticks().items()],
        range=f"{RANGE_DB:g}",
        duration=f"{listening.duration:.3f}",
        css=_markup(_asset("page.css")),
        js=_markup(_asset("page.js")),
        scripts=scripts,
    )
    with reporting_write_errors(path, OutputError):
        if in_files:
            folder = path.with_name(f"{path.stem}-sounds")
            folder.mkdir(exist_ok=True)
            for key, sound in sounds.items():
                script = f"(window.sounds ??= {{}})[{json.dumps(key)}] = {json.dumps(sound)};\n"
                write_atomically(folder / f"{key}.js", script)
        write_atomically(path, page)


def listen_to(
    recording: Sound,
    stems: Mapping[str, Sound],
    title: str,
    facts: Mapping[str, str] = MappingProxyType({}),
    *,
    path: Path | None = None,
    references: Mapping[str, Sound] = MappingProxyType({}),
    scores: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    sample_rate: int | None = None,
    in_files: bool = False,
    track: int | None = None,
) -> Path:
    """Write the page of a recording and its stems, and return its path.

    Args:
        recording: a file, or a signal (channels, samples).
        stems: the file or signal of each stem. From the page, a listener saves files as they are, and signals as MP3.
        path: path of the page; by default ``<title>.html`` next to the first stem's file.
        references: the files or signals of true stems, by name; not every stem needs one.
        sample_rate: sample rate of the signals in hertz; not needed if the recording is a file.
        track: number of the audio track if the recording is a file; None for the file's default.
        facts, scores, in_files: see :class:`Listening` and :func:`write_page`.

    Raises:
        AudioReadError: if a file cannot be read.
        OutputError: if the page cannot be written.
    """
    if isinstance(recording, Tensor):
        mixture = recording
    else:
        found = read_audio(recording, track=track, partial=True)
        mixture, sample_rate = found.samples, found.sample_rate
    on_disk = {stem: Path(sound) for stem, sound in stems.items() if not isinstance(sound, Tensor)}
    if path is None and on_disk:
        path = next(iter(on_disk.values())).parent / f"{title}.html"
    if path is None or sample_rate is None:
        raise OutputError("Signals in memory need the path of the page and their sample rate. Give both.")
    listening = Listening(
        {"recording": mixture, **{stem: _samples(sound, mixture) for stem, sound in stems.items()}},
        sample_rate,
        title,
        facts,
        f"Made by metatasnet-fast {__version__}.",
        {stem: _samples(sound, mixture) for stem, sound in references.items()},
        scores,
        {stem: os.path.relpath(file, path.parent) for stem, file in on_disk.items()},
    )
    write_page(listening, path, in_files=in_files)
    return path


def _samples(sound: Sound, recording: Tensor) -> Tensor:
    """Return the samples of a file or signal, (channels, samples), cut or zero-padded to the length of the
    recording."""
    samples = sound if isinstance(sound, Tensor) else read_audio(sound).samples
    return functional.pad(samples, (0, recording.shape[-1] - samples.shape[-1]))


def _asset(name: str) -> str:
    return resources.files("metatasnet_fast").joinpath(f"assets/page/{name}").read_text("utf-8")


def _markup(text: str) -> Any:
    """Escape a text so that nothing in it can end a script or a style, and mark it as ready to insert."""
    return require("markupsafe", "The page").Markup(text.replace("</", "<\\/"))


def _decibels(value: float) -> str:
    return f"{value:+.1f} dB".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "silent"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "none"


def _level(signal: Tensor) -> float:
    """Return the mean power of a signal in decibels; minus infinity for silence."""
    power = float(signal.double().square().mean())
    return 10 * math.log10(power) if power > 0 else -math.inf


def _mp3(signal: Tensor, sample_rate: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as folder:
        path = Path(folder) / "signal.mp3"
        write_audio(path, signal, sample_rate)
        return path.read_bytes()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def write_picture(listening: Listening, path: Path) -> None:
    """Write a picture of the spectrograms as a PNG.

    Raises:
        MissingDependencyError: without matplotlib.
        OutputError: if the file cannot be written.
    """
    colors, Figure = require("matplotlib.colors", "The picture"), require("matplotlib.figure", "The picture").Figure
    Image = require("PIL.Image", "The picture")
    pictures = levels(listening.signals, listening.sample_rate, *PICTURE_SIZE)
    ticks = Axis.of(listening.sample_rate).ticks()
    figure = Figure(figsize=(12, 2.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(pictures), sharey=True)
    for panel, (name, picture) in zip(panels, pictures.items(), strict=True):
        panel.imshow(
            picture.flip(0).numpy(),
            cmap=colors.ListedColormap(magma() / 255),
            vmin=0,
            vmax=255,
            origin="lower",
            aspect="auto",
            extent=(0, listening.duration, 0, 1),
        )
        panel.set_title(name, fontsize=12)
        panel.set_yticks(list(ticks.values()), list(ticks))
        panel.tick_params(length=2, labelsize=8)
        panel.set_xlabel("seconds", fontsize=8)
        panel.spines[:].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, facecolor="white")
    with reporting_write_errors(path, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A palette makes the file a third as large.
        Image.open(drawn).convert("RGB").quantize(160).save(path, format="png", optimize=True)


MAGMA = ("000004", "1c1044", "4f127b", "812581", "b5367a", "e55064", "fb8761", "fec287", "fcfdbf")


def magma() -> npt.NDArray[np.uint8]:
    """Return 256 colours, (256, 3) uint8: red, green and blue of each."""
    points = np.array([list(bytes.fromhex(colour)) for colour in MAGMA], float)
    places = np.linspace(0, 255, len(MAGMA))
    channels = [np.interp(np.arange(256), places, points[:, channel]) for channel in range(3)]
    colours: npt.NDArray[np.uint8] = np.stack(channels, 1).round().astype(np.uint8)
    return colours


def encode_png(levels: Tensor) -> bytes:
    """Encode levels (rows, columns), uint8, as a PNG of one byte a pixel, with :func:`magma` as its palette."""
    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    # Every row begins with the number of its filter: 0 for none.
    lines = np.pad(levels.numpy(), ((0, 0), (1, 0))).tobytes()
    chunks = [(b"IHDR", header), (b"PLTE", magma().tobytes()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


WINDOW_SECONDS = 0.09
RANGE_DB = 60.0
"""Decibels from black to white."""

LOWEST, HIGHEST = 45.0, 18000.0
"""Lowest and highest frequency of a spectrogram, in hertz."""


@dataclass(frozen=True)
class Axis:
    """Logarithmic axis of frequencies from ``lowest`` to ``highest``, in hertz."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, sample_rate: int) -> Axis:
        return cls(LOWEST, min(HIGHEST, sample_rate / 2))

    def edges(self, bands: int) -> Tensor:
        """Return the borders of ``bands`` bands in hertz, (bands + 1,), float64. All bands have the same ratio of
        borders."""
        return torch.logspace(math.log10(self.lowest), math.log10(self.highest), bands + 1, dtype=torch.float64)

    def ticks(self) -> dict[str, float]:
        """Return the labels of the axis, each with its height, from 0 at the bottom to 1 at the top."""
        wanted = {"100 Hz": 100.0, "1 kHz": 1000.0, "10 kHz": 10000.0}
        span = math.log(self.highest / self.lowest)
        return {label: math.log(f / self.lowest) / span for label, f in wanted.items() if f < self.highest}


def levels(signals: Mapping[str, Tensor], sample_rate: int, rows: int, columns: int) -> dict[str, Tensor]:
    """Return the spectrograms of signals (channels, samples), by name, on one scale.

    Returns:
        for each signal its levels, (rows, columns), uint8, the highest band first. 255 is the level of the loudest band
        of all signals, and 0 is ``RANGE_DB`` below that.
    """
    axis = Axis.of(sample_rate)
    powers = {name: _band_powers(signal, sample_rate, axis.edges(rows), columns) for name, signal in signals.items()}
    loudest = max(float(power.max()) for power in powers.values()) or 1.0
    return {name: _scale(power / loudest).flip(0) for name, power in powers.items()}


def _scale(power: Tensor) -> Tensor:
    decibels = 10 * power.clamp(min=1e-30).log10()
    return ((decibels / RANGE_DB + 1).clamp(0, 1) * 255).round().to(torch.uint8)


def _band_powers(signal: Tensor, sample_rate: int, edges: Tensor, columns: int) -> Tensor:
    """Return the power of a signal in each band, (bands, columns), float64, as the mean over channels.

    The spectrum is integrated over frequency, and the integral is interpolated linearly at the ``edges`` of the bands.
    So a band that is narrower than a bin gets its share of the bin.
    """
    n_fft = 2 ** round(math.log2(WINDOW_SECONDS * sample_rate))
    hop = max(1, -(-signal.shape[1] // columns))
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(signal.float(), (n_fft // 2, n_fft // 2 + hop))
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    power = spectrum.abs().square().double().mean(0)[:, :columns]
    integral = torch.nn.functional.pad(power.cumsum(0), (0, 0, 1, 0))
    at = (edges * n_fft / sample_rate + 0.5).clamp(0, power.shape[0] - 1e-6)
    low = at.floor().long()
    part = (at - low)[:, None]
    read: Tensor = integral[low] * (1 - part) + integral[low + 1] * part
    return read[1:] - read[:-1]
