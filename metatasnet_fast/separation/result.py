"""Define the result of a separation (the stems, and how they were made), the choice of stems, and the report of
progress."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from torch import Tensor

from .._io import reporting_write_errors
from ..audio import write_audio
from ..errors import AudioWriteError, UnknownStemError

__all__ = [
    "Progress", "ProgressCallback", "Recipe", "Reporter", "Separation", "Stems", "TwoStems", "parse_stems", "two_stems"
]  # fmt: skip


PLAYED_SECONDS = 60
"""Seconds of each stem that the notebook's players hold."""


class TwoStems(NamedTuple):
    """A choice of stems: one stem, and ``no_<stem>``, the sum of the others."""

    stem: str


Stems: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]] | TwoStems | None
"""The stems to return: a list of names; or a mapping from new names to the stems that are added up under each; or
``two_stems("vocals")``; or None for all stems."""

Recipe: TypeAlias = dict[str, tuple[str, ...]]
"""The outputs by name, each with the stems that are added up in it."""


def two_stems(stem: str) -> TwoStems:
    """Return the choice of one stem and the sum of the others, such as ``vocals`` and ``no_vocals``."""
    return TwoStems(stem)


def parse_stems(stems: Stems, instruments: Sequence[str]) -> Recipe:
    """Return the outputs that a choice of stems means, each with the stems that are added up in it.

    Args:
        stems: the choice.
        instruments: the network's instruments.

    Raises:
        UnknownStemError: for stems that the network does not produce, or an empty sum.
    """
    known = ", ".join(instruments)
    if stems is None:
        return {name: (name,) for name in instruments}
    if isinstance(stems, TwoStems):
        _check((stems.stem,), instruments)
        others = tuple(name for name in instruments if name != stems.stem)
        if not others:
            raise UnknownStemError(f"The network produces {stems.stem} alone: there is no sum of other stems.")
        return {stems.stem: (stems.stem,), f"no_{stems.stem}": others}
    if isinstance(stems, str):
        stems = (stems,)
    if not isinstance(stems, Iterable):
        raise UnknownStemError(f"Stems are named by strings, got {stems!r}; choose from {known}.")
    if isinstance(stems, Mapping):
        recipe = {name: (parts,) if isinstance(parts, str) else tuple(parts) for name, parts in stems.items()}
    else:
        recipe = {name: (name,) for name in stems}
    if not recipe or not all(recipe.values()):
        raise UnknownStemError(f"No stem was asked for; choose from {known}.")
    for parts in recipe.values():
        _check(parts, instruments)
    return recipe


@dataclass(frozen=True, repr=False)
class Separation(Mapping[str, Tensor]):
    """The stems of one recording by name, each (channels, samples), float32, exactly as long as the recording.

    If the recording was given as (samples,), the stems are (samples,), too. If the stems were written to files, the
    mapping is empty, and ``files`` has the paths.
    """

    stems: dict[str, Tensor]
    sample_rate: int
    """Sample rate of the recording, in hertz."""
    gains: dict[str, tuple[float, ...]]
    """For each of the network's stems, the factors that least squares gave it, one for each channel (see
    ``Separator``)."""
    duration: float
    """Seconds of audio."""
    seconds: float
    """Wall-clock seconds that the separation took, with reading and writing."""
    backend: str
    device: str
    precision: str
    mode: str
    warnings: tuple[str, ...] = ()
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio separated per second of wall-clock time."""
        return self.duration / self.seconds if self.seconds > 0 else float("inf")

    def __getattr__(self, name: str) -> Tensor:
        """Return a stem by its name, as in ``separation.vocals``."""
        stems = self.__dict__.get("stems", {})
        if name in stems:
            return cast(Tensor, stems[name])
        raise AttributeError(f"There is neither an attribute nor a stem {name!r}; the stems are {', '.join(stems)}.")

    def save(
        self, folder: str | os.PathLike[str], *, format: str = "wav", subtype: str | None = None
    ) -> dict[str, Path]:
        """Write each stem to ``folder/<stem>.<format>``, and return the paths.

        Args:
            folder: folder for the files, created if it is missing. Existing files of the same names are replaced.
            format, subtype: as in :meth:`Separator.separate_file`.

        Raises:
            AudioWriteError: if a stem cannot be written; no half-written file is left.
        """
        folder = Path(folder)
        if self.files:
            raise AudioWriteError(f"The stems are in files already: {', '.join(map(str, self.files.values()))}.")
        with reporting_write_errors(folder, AudioWriteError):
            folder.mkdir(parents=True, exist_ok=True)
        paths = {stem: folder / f"{stem}.{format}" for stem in self.stems}
        for stem, path in paths.items():
            signal = self.stems[stem].detach().cpu()
            write_audio(
                path, signal[None] if signal.ndim == 1 else signal, self.sample_rate, format=format, subtype=subtype
            )
        return paths

    def _repr_html_(self) -> str:
        """Return HTML with players for a notebook, with the first minute of each stem in 16 bits."""
        rows = [f"<p>{escape(repr(self))}</p>"]
        for stem, signal in self.stems.items():
            samples = signal.detach().cpu().reshape(-1, signal.shape[-1])[:2, : PLAYED_SECONDS * self.sample_rate]
            with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as folder:
                path = Path(folder) / "stem.wav"
                write_audio(path, samples, self.sample_rate)
                content = base64.b64encode(path.read_bytes()).decode("ascii")
            rows.append(f'<p>{escape(stem)}<br><audio controls src="data:audio/wav;base64,{content}"></audio></p>')
        return "\n".join(rows)

    def two_stems(self, stem: str) -> dict[str, Tensor]:
        """Return one stem and the sum of the others: ``{"vocals": ..., "no_vocals": ...}``.

        Raises:
            UnknownStemError: if any of the network's stems is missing here.
        """
        return self.aggregate(parse_stems(TwoStems(stem), tuple(self.gains)))

    def aggregate(self, sums: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Return sums of stems by their new names, as in ``aggregate({"accompaniment": ["drums", "bass", "other"]})``.

        Raises:
            UnknownStemError: for a stem that is missing here, or an empty sum.
        """
        result = {}
        for name, parts in sums.items():
            _check(parts, self.stems)
            result[name] = sum((self.stems[p] for p in parts[1:]), self.stems[parts[0]].clone())
        return result

    def __getitem__(self, stem: str) -> Tensor:
        return self.stems[stem]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stems)

    def __len__(self) -> int:
        return len(self.stems)

    def __repr__(self) -> str:
        names = ", ".join(self.stems or self.files)
        return (
            f"Separation({names}; {self.duration:.2f} s at {self.sample_rate} Hz in {self.seconds:.2f} s, "
            f"{self.real_time_factor:.1f} x real time; {self.mode} mode, {self.backend} on {self.device} in {self.precision})"
        )

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def report(self) -> dict[str, Any]:
        """Return everything but the audio, in a form for JSON."""
        return {
            "sample_rate": self.sample_rate,
            "gains": {name: list(values) for name, values in self.gains.items()},
            "duration": self.duration,
            "seconds": self.seconds,
            "real_time_factor": self.real_time_factor,
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "mode": self.mode,
            "warnings": list(self.warnings),
            "files": {name: str(path) for name, path in self.files.items()},
        }


def _check(stems: Sequence[str], known: Mapping[str, object] | Sequence[str]) -> None:
    if not stems:
        raise UnknownStemError(f"A sum needs at least one stem; choose from {', '.join(known)}.")
    for stem in stems:
        if stem not in known:
            raise UnknownStemError(f"There is no stem {stem!r}; choose from {', '.join(known)}.")


@dataclass(frozen=True)
class Progress:
    """Progress of a separation at one moment. ``fraction`` lies in [0, 1], never becomes smaller, and is 1.0 at the
    end."""

    fraction: float
    seconds_done: float
    """Seconds of audio that ``stage`` has processed."""
    seconds_total: float | None
    """Seconds of the recording; None while a file of unknown length is being read."""
    stage: str
    """``read``, ``separate`` or ``write``."""


ProgressCallback: TypeAlias = Callable[[Progress], object]

_SPANS = {"read": (0.0, 0.05), "separate": (0.05, 0.9), "write": (0.9, 1.0)}
"""Start and end of each stage as ``Progress.fraction``. The network takes most of the time."""


class Reporter:
    """Reporter of the progress: it calls the progress callback, if there is one."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self.total: float | None = None
        self._callback = callback
        self._fraction = 0.0

    def report(self, stage: str, seconds: float) -> None:
        """Report that ``stage`` has processed ``seconds`` of audio."""
        if self._callback is None:
            return
        first, last = _SPANS[stage]
        part = min(1.0, seconds / self.total) if self.total else 0.0
        self._fraction = max(self._fraction, first + (last - first) * part)
        self._callback(Progress(self._fraction, seconds, self.total, stage))

    def finish(self) -> None:
        """Report the end: call the callback for the last time, with fraction 1.0."""
        if self._callback is not None and self._fraction < 1.0:
            self._fraction = 1.0
            self._callback(Progress(1.0, self.total or 0.0, self.total, "write"))
