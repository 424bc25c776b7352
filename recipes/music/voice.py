"""Sing vocals with words of a speech synthesiser or of people: WORLD splits a spoken word into pitch, envelope and breath,
rules write a melody in the piece's scale, and WORLD joins melody, envelope and breath.

    apt-get install flite && pip install pyworld scipy
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyworld
import soundfile as sf
from numpy.typing import NDArray
from scipy.signal import resample_poly

from .render import add_room
from .score import BAR, Piece, Sung, vocal_line

__all__ = ["VOICE_RATE", "vocal_stem"]

VOICE_RATE = 16000
FRAME = 0.005
"""Length in seconds of a frame of WORLD."""
VOICES = {"slt": 66, "awb": 55, "rms": 52, "kal16": 53}
"""Flite's voices, each with the MIDI note around which it sings."""
MOST_WORDS = 60
"""Words that are taken from one person's recordings, at most."""
SPEECH_TO_SONG = 4
"""Semitones between the note at which a person speaks and the note around which the person sings."""
LONGEST_WORD = 1.0
"""Length in seconds of the longest word that is taken from a recording."""
WORDS = (
    "love you me night day light fire rain run free fall call name time line mind gone home stone road blue true sky high why "
    "cry heart start dark part world girl hold cold gold soul far star are now how down sound moon soon room dream scene mean "
    "stay way wait late breathe leave more door floor ooh ah oh yeah hey no go know show slow alone along away again forever "
    "morning never over river under water summer hollow shadow window"
).split()
Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Word:
    """Frames of a spoken word: spectral envelope and aperiodicity (frames, bins), which are voiced, and the vowel's.

    ``pitch``: MIDI note at which the vowel was spoken.
    """

    envelope: NDArray[np.floating]
    breath: NDArray[np.floating]
    voiced: NDArray[np.bool_]
    vowel: tuple[int, int]
    pitch: float


@cache
def vocabulary(singer: str) -> tuple[list[Word], int]:
    """Return the words of a Flite voice, or of a person whose recordings lie in a folder or match a pattern, and the MIDI
    note around which the singer sings."""
    if singer in VOICES:
        return [word for text in WORDS if (word := _synthesised(singer, text)) is not None], VOICES[singer]
    words = [word for path in recordings(singer)[:MOST_WORDS] if (word := _recorded(path)) is not None]
    if not words:
        raise SystemExit(f"{singer}: no spoken words are there.")
    return words, SPEECH_TO_SONG + round(float(np.median([word.pitch for word in words])))


def recordings(singer: str) -> list[Path]:
    """Return the recordings in a folder, or those that match a pattern, in an order that spreads over all of them."""
    root, pattern = (Path(singer), "**/*.*") if Path(singer).is_dir() else (Path("/"), singer.lstrip("/"))
    paths = sorted(path for path in root.glob(pattern) if path.suffix in (".ogg", ".wav", ".flac"))
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def _synthesised(voice: str, text: str) -> Word | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        audio, rate = sf.read(path)
    assert rate == VOICE_RATE
    return _analysed(audio)


def _recorded(path: Path) -> Word | None:
    """Analyse the loudest second of a recording, or less; every word of a person gets the same peak."""
    audio, rate = sf.read(path, always_2d=True)
    mono = resample_poly(audio.mean(1), VOICE_RATE, rate)
    length = int(LONGEST_WORD * VOICE_RATE)
    if len(mono) > length:
        energy = np.cumsum(np.square(mono))
        begin = int(np.argmax(energy[length:] - energy[:-length]))
        mono = mono[begin : begin + length]
    peak = float(np.abs(mono).max(initial=0.0))
    return _analysed(mono / peak) if len(mono) > 0.1 * VOICE_RATE and peak > 1e-3 else None


def _analysed(audio: NDArray[np.float64]) -> Word | None:
    """Split a spoken word. Return None if no vowel of 50 ms is found in it."""
    rate = VOICE_RATE
    pitch, times = pyworld.harvest(audio, rate, frame_period=1000 * FRAME)
    envelope = pyworld.cheaptrick(audio, pitch, times, rate)
    breath = pyworld.d4c(audio, pitch, times, rate)
    power = envelope.sum(1)
    loud = np.flatnonzero(power > 1e-4 * power.max())
    begin, end = int(loud[0]), int(loud[-1]) + 1
    envelope, breath, voiced, power = envelope[begin:end], breath[begin:end], pitch[begin:end] > 0, power[begin:end]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(int), [0]])))
    runs = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda run: -power[run[0] : run[1]].sum())
    if not runs or runs[0][1] - runs[0][0] < 0.05 / FRAME:
        return None
    first, last = (int(x) for x in runs[0])
    spoken = 69 + 12 * np.log2(np.median(pitch[begin + first : begin + last]) / 440)
    quarter = (last - first) // 4
    small = envelope.astype(np.float32), breath.astype(np.float32)
    return Word(*small, voiced, (first + quarter, last - quarter), float(spoken))


def _stretched(word: Word, frames: int) -> NDArray[np.float64]:
    """Return the position in the word for each frame of a note; only the vowel is stretched or shortened."""
    begin, end = word.vowel
    after = len(word.voiced) - end
    if frames < begin + after + 2:
        return np.linspace(0, len(word.voiced) - 1, frames)
    held = frames - begin - after
    return np.concatenate([np.arange(begin), np.linspace(begin, end - 1, held), end + np.arange(after)])


def _sing(rng: np.random.Generator, notes: list[Sung], words: list[Word], shape: float, breath: float) -> Audio:
    """Sing a phrase, mono; ``shape`` stretches the spectral envelope (a smaller or larger head), ``breath`` adds noise."""
    bins = words[0].envelope.shape[1]
    bent = np.clip(np.arange(bins) / shape, 0, bins - 1)
    envelopes, breaths, pitches = [], [], []
    for note in notes:
        word = words[int(rng.integers(len(words)))]
        at = np.rint(_stretched(word, max(4, round(note.seconds / FRAME)))).astype(int)
        envelopes.append(word.envelope[at][:, bent.astype(int)] * note.loudness**2)
        breaths.append(np.clip(word.breath[at][:, bent.astype(int)] + breath, 0, 1))
        pitches.append(np.where(word.voiced[at], note.pitch, np.nan))
    pitch = _gliding(rng, np.concatenate(pitches), np.concatenate([np.arange(len(part)) * FRAME for part in pitches]))
    parts = [np.ascontiguousarray(np.concatenate(x), np.float64) for x in (envelopes, breaths)]
    hertz = np.where(np.isnan(pitch), 0.0, 440 * 2 ** ((pitch - 69) / 12))
    return np.asarray(pyworld.synthesize(hertz, *parts, VOICE_RATE, 1000 * FRAME), np.float32)


def _gliding(rng: np.random.Generator, pitch: NDArray[np.float64], since: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the MIDI pitch of every frame, nan where unvoiced: with glides between notes, vibrato on long notes, and
    drift.

    ``since``: seconds since the note began.
    """
    voiced = ~np.isnan(pitch)
    between = np.interp(np.arange(len(pitch)), np.flatnonzero(voiced), pitch[voiced])
    width = max(1, round(rng.uniform(0.03, 0.12) / FRAME))
    window = np.hanning(2 * width + 1)
    smooth = np.convolve(np.pad(between, width, mode="edge"), window / window.sum(), "valid")
    time = np.arange(len(pitch)) * FRAME
    depth = rng.uniform(0, 0.5) * np.clip(since - 0.25, 0, 0.4) / 0.4
    vibrato = depth * np.sin(2 * np.pi * rng.uniform(4.8, 6.5) * time)
    knots = np.arange(0, time[-1] + 0.6, 0.3)
    drift = 0.15 * np.interp(time, knots, rng.standard_normal(int((time[-1] + 0.6) / 0.3) + 1)[: len(knots)])
    return np.where(voiced, smooth + vibrato + drift, np.nan)


def _room(rng: np.random.Generator, audio: Audio, piece: Piece) -> Audio:
    """Return (2, n) with overtones by saturation, at times an echo in the piece's time, at times a decaying room."""
    drive = rng.uniform(0.3, 2.0)
    dry = np.tanh(drive * audio / (3 * audio.std() + 1e-9)).astype(np.float32)
    wet = np.stack([dry, dry])
    if rng.random() < 0.4:
        delay = int(rng.choice([2, 3, 4]) * piece.sixteenth * VOICE_RATE)
        for turn in range(1, 4):
            wet[turn % 2, turn * delay :] += dry[: -turn * delay] * np.float32(rng.uniform(0.2, 0.5) ** turn)
    if rng.random() < 0.8:
        wet = add_room(rng, wet, VOICE_RATE, longest=2.5)
    return np.asarray(wet, np.float32)


def vocal_stem(rng: np.random.Generator, piece: Piece, people: Sequence[str] = ()) -> Audio:
    """Return (2, samples at ``VOICE_RATE``): a lead, often doubled or with a second voice a third or an octave away.

    ``people``: see `vocabulary`; each of them sings as often as each voice of Flite.
    """
    words, spoken = vocabulary(str(rng.choice([*VOICES, *people])))
    middle = spoken + int(rng.integers(-3, 9))
    shape, breath = rng.uniform(0.88, 1.2), rng.uniform(0.0, 0.25) * (rng.random() < 0.5)
    total = int((piece.bars * BAR * piece.sixteenth + 1) * VOICE_RATE)
    lead, second = np.zeros(total, np.float32), np.zeros(total, np.float32)
    companion = rng.choice([0.0, 0.08, 3.5, -12.0, 12.0], p=[0.4, 0.3, 0.15, 0.1, 0.05])
    bar = 0
    while bar + 2 <= piece.bars:
        bars = int(rng.choice([1, 2, 2]))
        if rng.random() < 0.8:
            begin = int((bar * BAR + int(rng.choice([0, 0, 2, -2 if bar else 0]))) * piece.sixteenth * VOICE_RATE)
            notes, state = vocal_line(rng, piece, middle, bars), rng.bit_generator.state
            phrases = [(lead, notes)]
            if companion:
                phrases.append((second, [Sung(n.seconds, n.pitch + companion, n.loudness) for n in notes]))
            for track, part in phrases:
                rng.bit_generator.state = state  # so that both voices sing the same words
                phrase = _sing(rng, part, words, shape, breath)[: total - begin]
                late = int(rng.uniform(0.0, 0.025) * VOICE_RATE) if track is second else 0
                track[begin + late : begin + len(phrase)] += phrase[: len(phrase) - late]
        bar += bars
    out = _room(rng, lead, piece)
    if companion:
        out = out + np.float32(rng.uniform(0.3, 0.8)) * _room(rng, second, piece)
    return np.asarray(out, np.float32)
