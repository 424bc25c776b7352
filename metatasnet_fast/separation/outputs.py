"""Compute the gains of the stems; apply the gains in a second pass, and put the stems into tensors or files.

The gains g bring the sum of the stems closest to the recording. In each channel, over the whole recording, they
minimise ``sum_t (mix_t - sum_i g_i stem_it)^2``. They solve the normal equations ``G g = c`` with
``G_ij = sum_t stem_it stem_jt`` and ``c_i = sum_t stem_it mix_t``. These sums are added up block by block.

An instrument that was added to a trained network is also heard in the older stems, so the sum of all stems has no
meaning. Each added stem gets the gain that brings it alone closest to the recording. The older stems get the gains
that they would have without the added stems.

Source: the authors' ``evaluate.py``, which calls ``numpy.linalg.lstsq``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..audio import AudioWriter, Tags
from ..config import MetaTasNetConfig
from ..errors import MetaTasNetError, OutputError
from .recording import Recording, Spool
from .result import Recipe, Reporter

__all__ = [
    "SILENCE", "NormalEquations", "StemFiles", "Unscaled", "collect", "residual_shares", "safe_std",
]  # fmt: skip

SILENCE = 1e-30
"""A peak or a standard deviation up to this counts as zero: a division by it would overflow float32."""

RANK_TOLERANCE = 1e-12
"""Eigenvalues of the stems' correlation matrix below this share of the largest eigenvalue count as zero: then the stems
are linearly dependent. The share is well above the rounding of float64 sums, and far below what real stems have."""


class NormalEquations:
    """Normal equations ``G g = c`` of the gains of I stems, for each channel: ``G`` is (channels, I, I), ``c`` is
    (channels, I), both float64.

    Args:
        channels: number of channels of the recording.
        stems: number I of stems.
        added: number of added instruments, whose stems come last.
    """

    def __init__(self, channels: int, stems: int, added: int = 0) -> None:
        self.competing = stems - added
        self.gram = torch.zeros(channels, stems, stems, dtype=torch.float64)
        self.cross = torch.zeros(channels, stems, dtype=torch.float64)

    def add(self, stems: Tensor, mixture: Tensor) -> None:
        """Add (channels, I, n) samples of the stems and (channels, n) samples of the mixture to the sums."""
        if stems.device.type == "mps":
            stems, mixture = stems.cpu(), mixture.cpu()
        wide = stems.double()
        self.gram += (wide @ wide.transpose(1, 2)).cpu()
        self.cross += (wide @ mixture.to(wide).unsqueeze(-1)).squeeze(-1).cpu()

    def solve(self) -> Tensor:
        """Solve the equations, and return the gains, (channels, I), float64.

        The equations are scaled to a unit diagonal first, because the levels of the stems are arbitrary. If stems are
        linearly dependent, the result is the solution of least norm in that scale. Silent stems, and all stems of a
        silent channel, get 0.

        Raises:
            MetaTasNetError: if a stem is not finite.
        """
        if not (self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise MetaTasNetError(
                "The network's output is not finite: separate with dtype='float32', or check the weights."
            )
        first = slice(0, self.competing)
        together = _least_squares(self.gram[:, first, first], self.cross[:, first])
        energy, cross = self.gram.diagonal(dim1=1, dim2=2)[:, self.competing :], self.cross[:, self.competing :]
        return torch.cat([together, torch.where(energy > 0, cross / energy, 0.0)], dim=1)

    def energies(self, gains: Tensor) -> Tensor:
        """Return the energy of every stem after its gain, (channels, I), float64.

        It is 0 for added instruments, so that they get no part of the residual.
        """
        energies = self.gram.diagonal(dim1=1, dim2=2) * gains.square()
        energies[:, self.competing :] = 0
        return energies


def _least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    level = gram.diagonal(dim1=1, dim2=2).sqrt()
    inverse = torch.where(level > 0, 1 / level, 0.0)
    values, vectors = torch.linalg.eigh(gram * inverse[:, :, None] * inverse[:, None, :])
    keep = values > RANK_TOLERANCE * values.amax(-1, keepdim=True)
    reciprocal = torch.where(keep, 1 / values, 0.0)
    projected = (vectors.transpose(1, 2) @ (cross * inverse).unsqueeze(-1)).squeeze(-1)
    gains: Tensor = (vectors @ (projected * reciprocal).unsqueeze(-1)).squeeze(-1) * inverse
    return gains


def residual_shares(energies: Tensor) -> Tensor:
    """Return the share that each stem gets of the residual ``mix - sum_i g_i stem_i``, (channels, I).

    It is the stem's share of the ``energies`` (channels, I). So a silent stem stays silent. If all stems are silent,
    all get equal shares.
    """
    total = energies.sum(-1, keepdim=True)
    equal = torch.full_like(energies, 1 / energies.shape[-1])
    return torch.where(total > 0, energies / total, equal)


def safe_std(deviation: Tensor) -> Tensor:
    """Return the standard deviation to divide by: 1 where it is zero, as for silence, a constant, or a single
    sample."""
    return torch.where(deviation > SILENCE, deviation, torch.ones_like(deviation))


@dataclass
class Unscaled:
    """The network's stems at the recording's rate, before their gains are applied, and all else that the second pass
    needs.

    ``non_silent`` lists the channels that are not silent. ``stems`` has the rows of these channels only, in this order:
    for each channel, a row for each of the I instruments.
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
        """Solve the equations for the gains, and return the stems with these.

        Raises:
            MetaTasNetError: if the network's output is not finite.
        """
        gains = torch.zeros(mixture.channels, len(config.instruments), dtype=torch.float64)
        energies = torch.zeros_like(gains)
        if non_silent:
            solution = equations.solve()
            gains[non_silent], energies[non_silent] = solution, equations.energies(solution)
        return cls(stems, mixture, non_silent, gains, energies, config)

    def gains_by_name(self) -> dict[str, list[float]]:
        """Return the gains of every instrument, by its name: one for each channel."""
        return {name: self.gains[:, index].tolist() for index, name in enumerate(self.config.instruments)}

    def outputs(self, recipe: Recipe, consistent: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the outputs of a recipe by name, in consecutive blocks (channels, n), float32.

        This works only once, because the stems are freed.

        Args:
            consistent: distribute the residual over the stems, so that the stems add up to the recording.
        """
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
    """Return every output of a recipe as one tensor, (channels, samples), float32, on ``device``.

    ``consistent`` is as for :meth:`Unscaled.outputs`; ``rate`` is the recording's, in hertz.
    """
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
    """A file for each output of a recipe. The files get their names only when they are complete: if a block cannot be
    written, no file appears."""

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
        """Plan the files of a recording's outputs, and check all that can be checked without opening a file.

        Nothing is created yet.

        Args:
            name: template of the files' names below ``folder``, with ``{track}`` and ``{stem}``.
            track: text for ``{track}``.

        Raises:
            OutputError: if names clash or cannot be filled in, or the format cannot hold the recording.
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
        """Write all outputs, block by block, and return warnings about clipped samples. The folders must exist.

        ``consistent`` is as for :meth:`Unscaled.outputs`; ``rate`` is the recording's, in hertz.

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
