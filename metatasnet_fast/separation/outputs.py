"""Stems before their gains, and the second pass that applies them: into tensors, or into files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..audio import AudioWriter, Tags
from ..config import MetaTasNetConfig
from ..errors import OutputError
from .gains import NormalEquations, residual_shares
from .recording import Recording, Spool
from .result import Recipe, Reporter

__all__ = ["StemFiles", "Unscaled", "collect"]


@dataclass
class Unscaled:
    """The network's stems at the recording's rate, with everything that the second pass needs.

    ``stems`` has ``len(non_silent) * I`` rows for I instruments, channel by channel in the order of ``non_silent``, which lists
    the channels that are not silent.
    """

    stems: Spool
    mixture: Spool
    non_silent: list[int]
    gains: Tensor
    """(channels, I), float64."""
    energies: Tensor
    """Energies of the stems after their gains, (channels, I), float64."""
    config: MetaTasNetConfig
    """Settings of the network, for its instruments."""

    @classmethod
    def solve(
        cls, stems: Spool, mixture: Spool, non_silent: list[int], equations: NormalEquations, config: MetaTasNetConfig
    ) -> Unscaled:
        """Solve for the least-squares gains; raise :class:`MetaTasNetError` if the network's output is not finite."""
        gains = torch.zeros(mixture.channels, len(config.instruments), dtype=torch.float64)
        energies = torch.zeros_like(gains)
        if non_silent:
            solution = equations.solve()
            gains[non_silent], energies[non_silent] = solution, equations.energies(solution)
        return cls(stems, mixture, non_silent, gains, energies, config)

    def gains_by_name(self) -> dict[str, list[float]]:
        """Return the gain of each channel for every instrument."""
        return {name: self.gains[:, index].tolist() for index, name in enumerate(self.config.instruments)}

    def outputs(self, recipe: Recipe, consistent: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the recipe's outputs in consecutive blocks (channels, n), float32. This works once, as it frees the
        stems."""
        start, length = 0, self.mixture.length
        instruments, competing = self.config.instruments, len(self.config.instruments) - self.config.added_instruments
        blocks = self.stems.drain() if self.non_silent else _no_rows(length)
        for block in blocks:
            stop = start + block.shape[1]
            device = block.device
            gains = self.gains[self.non_silent].to(device, torch.float32)
            stems = block.view(len(self.non_silent), len(instruments), stop - start) * gains[:, :, None]
            if consistent:
                mixture = self.mixture.read(start, stop)[self.non_silent].to(device)
                shares = residual_shares(self.energies[self.non_silent, :competing]).to(device, torch.float32)
                residual = (mixture - stems[:, :competing].sum(1))[:, None]
                stems = torch.cat([stems[:, :competing] + shares[:, :, None] * residual, stems[:, competing:]], dim=1)
            result = {}
            for name, parts in recipe.items():
                rows = [instruments.index(part) for part in parts]
                output = block.new_zeros(self.mixture.channels, stop - start)
                output[self.non_silent] = stems[:, rows].sum(1) if len(rows) > 1 else stems[:, rows[0]]
                result[name] = output
            yield result
            start = stop
        assert start == length


def _no_rows(length: int) -> Iterator[Tensor]:
    for start in range(0, length, 2**20):
        yield torch.zeros(0, min(2**20, length - start), dtype=torch.float32)


def collect(
    unscaled: Unscaled, recipe: Recipe, consistent: bool, device: torch.device, rate: int, reporter: Reporter
) -> dict[str, Tensor]:
    """Return every output as one (channels, samples) tensor on ``device``."""
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
    """One file for every output of a recipe; either all of them are complete, or none exists."""

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
        """Check everything that can be refused before the work begins; create nothing yet.

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
        """Write all outputs into folders that exist, in memory for one block; return warnings.

        Raises:
            OutputError: if a file cannot be written.
        """
        with contextlib.ExitStack() as stack:
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
