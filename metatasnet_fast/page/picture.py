"""A compact picture of a separation: the spectrograms of mixture and stems side by side."""

from __future__ import annotations

import io
from pathlib import Path

from .._extras import require
from .._io import reporting_write_errors
from ..errors import OutputError
from .png import magma
from .spectrogram import Axis, levels
from .write import Listening

__all__ = ["write_picture"]

ROWS, COLUMNS = 200, 250


def write_picture(listening: Listening, path: Path) -> None:
    """Write a PNG; raise :class:`MissingDependencyError` without matplotlib, :class:`OutputError` if the file cannot be
    written."""
    colors, Figure = require("matplotlib.colors", "The picture"), require("matplotlib.figure", "The picture").Figure
    Image = require("PIL.Image", "The picture")
    pictures = levels(listening.signals, listening.sample_rate, ROWS, COLUMNS)
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
