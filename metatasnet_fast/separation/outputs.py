"""Destinations of the scaled stems: tensors, or files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._io import reporting_write_errors
from ..audio import AudioWriter, Tags
from ..errors import OutputError
from .progress import Reporter
from .recording import Recording
from .result import Recipe
from .unscaled import Unscaled

__all__ = ["StemFiles", "collect"]


def collect(
    unscaled: Unscaled, recipe: Recipe, consistent: bool, device: torch.device, rate: int, reporter: Reporter
) -> dict[str, Tensor]:
    """Every output as one (channels, samples) tensor on ``device``."""
    shape = (unscaled.mixture.channels, unscaled.mixture.length)
    result = {name: torch.empty(shape, dtype=torch.float32, device=device) for name in recipe}
    done = 0
    for blocks in unscaled.outputs(recipe, consistent):
        length = next(iter(blocks.values())).shape[1]
        for name, block in blocks.items():
            result[name][:, done : done + length] = block
        done += length
        reporter.report("write", done / rate)
    return result


@dataclass
class StemFiles:
    """One file for every output of a recipe; all of them are complete, or none is there."""

    paths: dict[str, Path]
    writers: dict[str, AudioWriter]

    @classmethod
    def plan(
        cls,
        folder: Path,
        name: str,
        track: str,
        recipe: Recipe,
        recording: Recording,
        format: str,
        subtype: str | None,
        tags: Tags | None = None,
    ) -> StemFiles:
        """Find everything that can be refused before the work begins; nothing is created yet.

        Raises:
            OutputError: for names that clash or cannot be filled in, and for what the format cannot hold.
        """
        try:
            paths = {stem: folder / f"{name.format(track=track, stem=stem)}.{format}" for stem in recipe}
        except (LookupError, ValueError) as error:
            raise OutputError(f"The name {name!r} cannot be filled in: use {{track}} and {{stem}} only.") from error
        if len(set(paths.values())) < len(paths):
            raise OutputError(f"The stems would overwrite one another: put {{stem}} into the name {name!r}.")
        rate, channels, length = recording.sample_rate, recording.channels, recording.samples
        writers = {
            stem: AudioWriter(path, rate, channels, format=format, subtype=subtype, frames=length, tags=tags)
            for stem, path in paths.items()
        }
        return cls(paths, writers)

    def write(self, unscaled: Unscaled, recipe: Recipe, consistent: bool, rate: int, reporter: Reporter) -> list[str]:
        """Write all outputs, in memory for one block; return warnings.

        Raises:
            OutputError: if a file cannot be written.
        """
        with contextlib.ExitStack() as stack:
            for path in self.paths.values():
                with reporting_write_errors(path.parent, OutputError):
                    path.parent.mkdir(parents=True, exist_ok=True)
            for writer in self.writers.values():
                stack.enter_context(writer)
            done = 0
            for blocks in unscaled.outputs(recipe, consistent):
                for stem, block in blocks.items():
                    self.writers[stem].write(block)
                done += next(iter(blocks.values())).shape[1]
                reporter.report("write", done / rate)
        return [
            f"{writer.clipped_samples} samples of {stem} exceed full scale and were clipped; write float32 to keep them."
            for stem, writer in self.writers.items()
            if writer.clipped_samples
        ]
