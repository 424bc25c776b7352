"""Training items from a folder that `build_dataset.py` wrote: cuts of tracks, and mixes of stems of different tracks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatasnet_fast.config import INSTRUMENTS, MetaTasNetConfig

__all__ = ["UNIT", "Sampler", "Track", "Variety", "read_tracks"]

UNIT = 2048
"""The integer that stands for the deviation of a track's mono mixture."""
SOUNDS = 1e-2
"""Share of a mixture's energy above which a stem, or the rest of the mixture, counts as sounding."""
TONE = (60.0, 200.0, 600.0, 1800.0, 4000.0, 8000.0)
"""Hz."""
DRUMS, BASS, OTHER, VOCALS = range(4)
LONGEST = 4
"""Items' lengths that the longest item takes."""
HIGH_PASSED = 4
"""Fifth stem of a song: `other` without low frequencies."""
RESTS = (0.08, 0.15, 0.25, 0.08, 0.25)
"""How often drums, bass, other, vocals, and all of them together, are quieter in a part of an item."""
FADE = 0.05
"""Seconds in which a stem becomes quieter, or comes back."""


@dataclass(frozen=True)
class Variety:
    """How items differ from the tracks that they are cut from.

    ``tone``, dB: deviation of the gains with which half of the stems are :func:`retuned`. ``level``, dB: by how much items are
    louder or quieter at most. ``rests``: whether stems are :func:`resting`. ``kinds``: shares of the items that are a song as
    it is, vocals over a synthesised piece, stems of any tracks. ``songs``, ``singers``: of the stems of any tracks, and of
    vocals, the share that comes from songs.
    """

    tone: float = 0.0
    level: float = 3.0
    rests: bool = False
    kinds: tuple[float, float, float] = (0.3, 0.25, 0.45)
    songs: float = 0.6
    singers: float = 0.75


@dataclass(frozen=True)
class Track:
    """A song at one speed, or a synthesised piece.

    ``rates``: (stem, channel, sample) int16 for each stage. ``explicit``: all that is bass is in the stem bass.
    ``held``: seconds that are never trained on. ``sounding``: for each stem, the seconds in which it sounds.
    """

    name: str
    song: bool
    explicit: bool
    held: tuple[float, float]
    rates: tuple[NDArray[np.int16], ...]
    sounding: tuple[NDArray[np.int64], ...]


def read_tracks(folder: Path, sampling_rates: tuple[int, ...]) -> list[Track]:
    """Every finished track of a folder."""
    tracks = []
    for settings in sorted(folder.glob("*/track.json")):
        values = json.loads(settings.read_text("utf-8"))
        rates = tuple(np.load(settings.with_name(f"{rate}.npy"), mmap_mode="r") for rate in sampling_rates)
        second, coarse = sampling_rates[0], rates[0]
        held = (values["held"][0], values["held"][1])
        sounding = []
        for stem in range(4):
            seconds = coarse.shape[-1] // second
            mono = coarse[stem, 0, : seconds * second : 4].astype(np.float32).reshape(seconds, -1)
            loud = np.flatnonzero(np.square(mono).mean(1) > (0.02 * UNIT) ** 2)
            sounding.append(loud[(loud + 1 < held[0]) | (loud > held[1])])
        tracks.append(Track(settings.parent.name, values["song"], values["explicit"], held, rates, tuple(sounding)))
    return tracks


def without_rounding(mix: Tensor) -> Tensor:
    """Without the top 4.5% of the frequencies, where resampled audio holds nothing and int16 holds rounding noise.

    That noise lies 3 decades of power above the floor of the network's logarithmic spectrogram, and float audio has none.
    """
    spectrum = torch.fft.rfft(mix)
    spectrum[..., int(0.955 * (spectrum.shape[-1] - 1)) :] = 0
    return torch.fft.irfft(spectrum, n=mix.shape[-1])


def retuned(pieces: NDArray[np.float32], rate: int, gains: NDArray[np.float64]) -> NDArray[np.float32]:
    """Another tone: zero-phase gains, dB, at ``TONE`` Hz, linear in between over the logarithm of the frequency."""
    frequency = np.fft.rfftfreq(pieces.shape[-1], 1 / rate).clip(min=1.0)
    curve = (10 ** (np.interp(np.log(frequency), np.log(TONE), gains) / 20)).astype(np.float32)
    spectrum = torch.fft.rfft(torch.from_numpy(pieces)) * torch.from_numpy(curve)
    return torch.fft.irfft(spectrum, n=pieces.shape[-1]).numpy()


def resting(rng: np.random.Generator, frames: int, rate: float) -> NDArray[np.float32]:
    """Gains (4, frames): here and there a stem is silent or quieter for a part of the item or for all of it.

    ``rate``: frames a second.
    """
    gains = np.ones((4, frames), np.float32)
    time = np.arange(frames)
    for part in np.flatnonzero(rng.random(len(RESTS)) < RESTS):
        everything = part == len(RESTS) - 1
        decibels = rng.uniform(3, 12) if everything else rng.choice([rng.uniform(6, 30), np.inf])
        middle, half = rng.uniform(0, frames), rng.uniform(0.15, 0.75) * frames
        inside = np.clip(0.5 + (half - np.abs(time - middle)) / (FADE * rate), 0, 1)
        gains[slice(None) if everything else part] *= (1 - inside * (1 - 10 ** (-decibels / 20))).astype(np.float32)
    return gains


def spread(gains: NDArray[np.float32], frame: int) -> NDArray[np.float32]:
    """(stem, frame) to (stem, sample), linear in between; ``frame``, samples."""
    frames = np.arange(gains.shape[-1])
    at = np.arange(gains.shape[-1] * frame) / frame
    return np.stack([np.interp(at, frames, gain) for gain in gains]).astype(np.float32)


class Sampler:
    """Items cut at the same times at every rate.

    Four kinds: a song as it is; vocals over a synthesised piece, a song's or the piece's own; stems of any tracks; and any of
    these with another bass. Where a song's bass may hide in `other`, that `other` goes without low frequencies, or does not
    count in the loss. Half of the mixtures are freed of the cache's rounding noise.
    """

    def __init__(
        self,
        tracks: list[Track],
        config: MetaTasNetConfig,
        seconds: float,
        rng: np.random.Generator,
        variety: Variety = Variety(),
    ) -> None:
        self.config, self.rng, self.variety = config, rng, variety
        self.stages = config.stages
        self.item_frames = self.frames = round(seconds * config.sampling_rate) // config.W
        self.rate = config.sampling_rate / config.W
        self.tracks = [t for t in tracks if t.rates[0].shape[-1] // config.W > LONGEST * self.frames + 1]
        self.songs = [i for i, t in enumerate(self.tracks) if t.song]
        names = {t.name: i for i, t in enumerate(self.tracks)}
        self.voices = {
            i: names[v] for n, i in names.items() if (v := n.replace("piece-", "voice-")) in names and v != n
        }
        self.synthetic = [i for i, t in enumerate(self.tracks) if not t.song and not t.name.startswith("voice-")]
        self.with_stem = {
            (stem, song): [i for i, t in enumerate(self.tracks) if t.song is song and len(t.sounding[stem]) > 8]
            for stem in range(4)
            for song in (True, False)
        }
        self.with_bass = {
            song: [i for i in self.with_stem[BASS, song] if self.tracks[i].explicit] for song in (True, False)
        }

    def allowed(self, index: int, start: int) -> int:
        """The nearest start, in frames, at which an item fits into the track and misses what is held out."""
        track = self.tracks[index]
        last = track.rates[0].shape[-1] // self.config.W - self.frames - 1
        first, end = (round(x * self.rate) for x in track.held)
        start = min(max(start, 0), last)
        if end > first and first - self.frames < start < end:
            start = first - self.frames if first >= self.frames else end
        return min(start, last)

    def anywhere(self, index: int) -> int:
        last = self.tracks[index].rates[0].shape[-1] // self.config.W - self.frames
        return self.allowed(index, int(self.rng.integers(last)))

    def where_it_sounds(self, index: int, stem: int) -> int:
        sounding = self.tracks[index].sounding[stem]
        if not len(sounding):
            return self.anywhere(index)
        middle = (int(sounding[self.rng.integers(len(sounding))]) + float(self.rng.random())) * self.rate
        return self.allowed(index, int(middle - self.frames * self.rng.random()))

    def cut(self, index: int, stem: int, channel: int, start: int) -> list[NDArray[np.float32]]:
        """One stem at every rate; channel 2 is the mean of left and right."""
        pieces = []
        for stage, samples in zip(self.stages, self.tracks[index].rates, strict=True):
            span = slice(start * stage.W, (start + self.frames) * stage.W)
            if channel < 2:
                piece = samples[stem, channel, span].astype(np.float32)
            else:
                piece = samples[stem, :, span].mean(0, dtype=np.float32)
            pieces.append(piece * np.float32(1 / UNIT))
        return pieces

    def pick(self, choices: list[int]) -> int:
        return choices[int(self.rng.integers(len(choices)))]

    def channel(self) -> int:
        return int(self.rng.choice([0, 1, 2, 2]))

    def item(self) -> tuple[list[NDArray[np.float32]], bool]:
        """(4, sample) for each stage; whether `other` may hold a bass line."""
        rng, vary = self.rng, self.variety
        kind = rng.choice(["song", "backing", "any"], p=vary.kinds if self.synthetic else [0.5, 0.0, 0.5])
        base = self.pick(self.synthetic if kind == "backing" else self.songs)
        focus = int(rng.choice(4, p=[0.3, 0.1, 0.2, 0.4]))
        start, channel = self.where_it_sounds(base, focus), self.channel()
        doubtful = False
        new_bass = rng.random() < (0.8 if kind == "any" else 0.35)
        stems = []
        for stem in range(4):
            index, at, side = base, start, channel
            if kind == "backing" and stem == VOCALS and base in self.voices and rng.random() < 0.5:
                index = self.voices[base]
            elif kind == "any" or (kind == "backing" and stem == VOCALS):
                song = not self.with_stem[stem, False] or rng.random() < (
                    vary.singers if stem == VOCALS else vary.songs
                )
                index, side = self.pick(self.with_stem[stem, song]), self.channel()
                at = self.where_it_sounds(index, stem) if rng.random() < 0.8 else self.anywhere(index)
            if stem == BASS and new_bass:
                index = self.pick(self.with_bass[not self.synthetic or rng.random() < 0.3])
                at = self.where_it_sounds(index, stem)
            if stem == OTHER and not self.tracks[index].explicit:
                doubtful = not new_bass and rng.random() < 0.5
                pieces = self.cut(index, OTHER if doubtful else HIGH_PASSED, side, at)
            else:
                pieces = self.cut(index, stem, side, at)
            # Decibels: stems of different tracks are mixed at levels further apart.
            gain = 10 ** (rng.normal(0, 4 if kind == "any" else 1.5) / 20) * rng.choice([-1, 1])
            if vary.tone and rng.random() < 0.5:
                gains = rng.normal(0, vary.tone, len(TONE))
                pieces = [retuned(x, s.sampling_rate, gains) for x, s in zip(pieces, self.stages, strict=True)]
            stems.append([np.float32(gain) * piece for piece in pieces])
        level = np.float32(10 ** (rng.uniform(-vary.level, vary.level) / 20))
        item = [level * np.stack([pieces[s] for pieces in stems]) for s in range(len(self.stages))]
        if vary.rests:
            gains = resting(rng, self.frames, self.rate)
            item = [audio * spread(gains, stage.W) for audio, stage in zip(item, self.stages, strict=True)]
        return item, doubtful

    def batch(self, size: int, lengths: int = 1) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Mixtures (n, T_s) and sources (4, n, T_s) for each stage, and (4, n): 1 where a stem counts in the loss.

        ``lengths``, up to ``LONGEST``: how many times as long as usual the items are.
        """
        self.frames = lengths * self.item_frames
        items, doubtful = zip(*(self.item() for _ in range(size)), strict=True)
        sources = [torch.from_numpy(np.stack(stage, axis=1)) for stage in zip(*items, strict=True)]
        mixes = [x.sum(0) for x in sources]
        for clean in np.flatnonzero(self.rng.random(size) < 0.5):
            for mix in mixes:
                mix[clean] = without_rounding(mix[clean])
        # A stem counts where it and something else sound: in dB, hopeless and trivial items would weigh as much as the others.
        power = sources[-1].square().mean(-1)
        rest = (mixes[-1] - sources[-1]).square().mean(-1)
        counts = ((power > SOUNDS * (power + rest)) & (rest > SOUNDS * (power + rest)) & (power > 1e-4)).float()
        counts[OTHER] *= 1 - torch.tensor(doubtful, dtype=torch.float32)
        return mixes, sources, counts


def held_out_pieces(tracks: list[Track], config: MetaTasNetConfig) -> list[list[Tensor]]:
    """The held-out seconds of the songs at their own speed, mono: (4, T_s) for each stage."""
    pieces = []
    for track in tracks:
        first, end = (round(x * config.sampling_rate) // config.W for x in track.held)
        if track.name.endswith("@1.0") and end > first:
            cuts = [x[:4, :, first * s.W : end * s.W] for x, s in zip(track.rates, config.stages, strict=True)]
            pieces.append([torch.from_numpy(x.mean(1, dtype=np.float32) / np.float32(UNIT)) for x in cuts])
    return pieces


assert INSTRUMENTS == ("drums", "bass", "other", "vocals")
