"""Compose pieces of music by rules: tempo, key, chords, and lists of notes for drums, bass and other.

Time is in sixteenths. A piece is a chain of sections of four or eight bars; in each section every part plays or rests and
keeps one pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["BAR", "Hit", "Note", "Part", "Piece", "Sung", "compose", "vocal_line"]

BAR = 16
PROGRESSIONS = (
    (0, 5, 3, 4), (0, 4, 5, 3), (5, 3, 0, 4), (0, 3, 4, 4), (0, 5, 1, 4), (0, 0, 3, 3), (0, 6, 5, 6), (0, 2, 3, 4),
    (0, 0, 5, 5), (0, 6, 5, 4), (3, 4, 0, 0), (0, 3, 0, 4), (0, 0, 0, 0), (1, 4, 0, 0),
)  # fmt: skip
"""Chord progressions: degrees of the scale, each held for one bar."""
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 5, 7, 9, 10))
"""Major, minor, dorian, mixolydian."""
PADS = (48, 49, 50, 51, 52, 16, 17, 18, 19, 88, 89, 90, 91, 92, 93, 94, 95, 21, 61, 62, 63)
KEYS = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 24, 25, 26, 27, 28, 29, 30, 45, 46, 62, 80, 81)
LEADS = (11, 12, 13, 14, 40, 56, 57, 65, 66, 71, 73, 75, 79, 80, 81, 82, 83, 84, 85, 86, 87, 98, 99, 104, 108, 114)
BASSES = (32, 33, 34, 35, 36, 37, 38, 38, 39, 39, 87, 43)
"""General MIDI programs, counted from 0. Voices and choirs are left out, so that a network does not learn voices as
`other`."""


@dataclass(frozen=True)
class Note:
    start: float
    length: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Hit:
    """One stroke of a drum, by its name in `render.py`."""

    start: float
    drum: str
    velocity: int


@dataclass
class Part:
    program: int
    notes: list[Note] = field(default_factory=list)


@dataclass
class Piece:
    tempo: float
    bars: int
    key: int
    scale: tuple[int, ...]
    bass: Part
    other: list[Part]
    solo: Part | None = None
    """One more instrument, which is not part of ``other``."""
    drums: list[Hit] = field(default_factory=list)

    @property
    def sixteenth(self) -> float:
        """Length of a sixteenth note in seconds."""
        return 15 / self.tempo


@dataclass(frozen=True)
class Sung:
    """A note of a voice: length in seconds, MIDI pitch, loudness (1 is ordinary)."""

    seconds: float
    pitch: float
    loudness: float


def compose(rng: np.random.Generator, seconds: float, solo: Sequence[int] = ()) -> Piece:
    """Compose a piece of about ``seconds``. ``solo`` lists MIDI programs: one of these plays a part of its own, and the
    other parts do not use these programs."""
    tempo = float(rng.uniform(70, 178))
    bars = max(8, round(seconds * tempo / 240 / 4) * 4)
    bass, parts = Part(int(rng.choice(BASSES))), _parts(rng, solo)
    key, scale = int(rng.integers(12)), SCALES[int(rng.choice(4, p=[0.3, 0.4, 0.2, 0.1]))]
    piece = Piece(tempo, bars, key, scale, bass, parts, Part(int(rng.choice(solo))) if solo else None)
    swing = float(rng.choice([0, 0, 0, rng.uniform(0.1, 0.33)]))
    bar, recent = 0, {"drums": True, "bass": True}
    while bar < bars:
        length = min(int(rng.choice([4, 4, 8])), bars - bar)
        progression = [PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))][i % 4] for i in range(length)]
        chords = [_chord(key, scale, degree, bool(rng.random() < 0.3)) for degree in progression]
        recent = {name: bool(rng.random() < (0.85 if played else 0.95)) for name, played in recent.items()}
        if recent["drums"]:
            piece.drums += _drums(rng, bar * BAR, length, swing)
        if recent["bass"]:
            piece.bass.notes += _bass(rng, bar * BAR, chords)
        for part in piece.other if piece.solo is None else (*piece.other, piece.solo):
            if rng.random() < 0.75:
                part.notes += _accompany(rng, part, bar * BAR, chords, key, scale)
        bar += length
    return piece


def _parts(rng: np.random.Generator, without: Sequence[int]) -> list[Part]:
    groups = [[program for program in group if program not in without] for group in (PADS, KEYS, LEADS, KEYS)]
    chosen = [g for g in groups if rng.random() < 0.65] or [groups[1]]
    return [Part(int(rng.choice(g))) for g in chosen]


def _chord(key: int, scale: tuple[int, ...], degree: int, seventh: bool) -> list[int]:
    """Return the MIDI pitches of the chord on a degree of the scale, in the octave of MIDI note 0."""
    steps = [0, 2, 4, 6] if seventh else [0, 2, 4]
    return [key + scale[(degree + s) % 7] + 12 * ((degree + s) // 7) for s in steps]


def _velocity(rng: np.random.Generator, middle: int) -> int:
    return int(np.clip(rng.normal(middle, 9), 20, 127))


def _rhythm(rng: np.random.Generator, density: float) -> list[int]:
    """Draw where notes start within a bar, in sixteenths; strong beats are likelier."""
    weight = np.array([1.0, 0.25, 0.55, 0.35, 0.8, 0.25, 0.55, 0.4] * 2)
    starts = np.flatnonzero(rng.random(BAR) < weight * density)
    return [int(s) for s in starts] or [0]


def _bass(rng: np.random.Generator, begin: int, chords: list[list[int]]) -> list[Note]:
    style, hold = str(rng.choice(["rhythm", "eighths", "long", "octaves", "off", "walk"])), rng.uniform(0.45, 1.0)
    pattern, octave, notes = _rhythm(rng, rng.uniform(0.4, 1.0)), int(rng.choice([0, 0, 12])), []
    fixed = {
        "eighths": range(0, BAR, 2),
        "octaves": range(0, BAR, 2),
        "off": range(2, BAR, 4),
        "walk": range(0, BAR, 4),
    }
    starts = [0] if style == "long" else list(fixed.get(style, pattern))
    shifts = rng.choice([0, 0, 0, 0, 7, 12, -5, 10], BAR)
    for index, chord in enumerate(chords):
        root = 28 + (chord[0] - 28) % 12 + octave
        for number, start in enumerate(starts):
            end = starts[number + 1] if number + 1 < len(starts) else BAR
            pitch = root
            if style == "octaves":
                pitch += 12 * (number % 2)
            elif style == "walk":
                pitch = root + (chord[number % 3] - chord[0])
            elif style == "rhythm":
                pitch += int(shifts[start])
            length = max(0.5, (end - start) * hold)
            notes.append(Note(begin + index * BAR + start, length, int(pitch), _velocity(rng, 100)))
    return notes


def _accompany(
    rng: np.random.Generator, part: Part, begin: int, chords: list[list[int]], key: int, scale: tuple[int, ...]
) -> list[Note]:
    notes: list[Note] = []
    base = int(rng.choice([48, 60, 60, 72]))
    style = "pad" if part.program in PADS else str(rng.choice(["stabs", "arpeggio", "melody"]))
    if part.program in LEADS:
        style = str(rng.choice(["melody", "melody", "arpeggio"]))
    pattern, step = _rhythm(rng, rng.uniform(0.25, 0.9)), int(rng.choice([1, 2, 2, 4]))
    position = int(rng.integers(7))
    for index, chord in enumerate(chords):
        at = begin + index * BAR
        voicing = [base + (p - base) % 12 for p in chord]
        if style == "pad":
            notes += [Note(at, BAR * 0.98, p, _velocity(rng, 75)) for p in voicing]
        elif style == "stabs":
            length = float(rng.choice([1, 1.5, 3]))
            notes += [Note(at + s, length, p, _velocity(rng, 85)) for s in pattern for p in voicing]
        elif style == "arpeggio":
            order = [*voicing, voicing[0] + 12, *voicing[::-1]]
            for number, start in enumerate(range(0, BAR, step)):
                notes.append(Note(at + start, step * 0.9, order[number % len(order)], _velocity(rng, 85)))
        else:
            for number, start in enumerate(pattern):
                position += int(rng.integers(-2, 3))
                end = pattern[number + 1] if number + 1 < len(pattern) else BAR
                pitch = base + (key + scale[position % 7]) % 12 + 12 * (position // 7 % 2)
                notes.append(Note(at + start, (end - start) * 0.9, pitch, _velocity(rng, 92)))
    return notes


def _drums(rng: np.random.Generator, begin: int, bars: int, swing: float) -> list[Hit]:
    kick = {
        "four": [0, 4, 8, 12],
        "rock": [0, 8, 10],
        "break": [0, 2, 10, 11],
        "half": [0, 6, 10],
        "trap": [0, 3, 7, 10, 14],
        "free": _rhythm(rng, rng.uniform(0.3, 0.7)),
    }[str(rng.choice(["four", "four", "rock", "break", "half", "trap", "free"]))]
    snare = [[4, 12], [4, 12], [8], [4, 12, 15], [4, 7, 12], []][int(rng.integers(6))]
    hats = list(range(0, BAR, int(rng.choice([1, 2, 2, 4])))) if rng.random() < 0.8 else [2, 6, 10, 14]
    hat, open_hat = str(rng.choice(["hat", "hat", "hat", "ride", "shaker"])), bool(rng.random() < 0.4)
    backbeat = str(rng.choice(["snare", "snare", "snare", "clap", "rim"]))
    extra = str(rng.choice(["tom", "perc", "perc2", "clap"])) if rng.random() < 0.4 else ""
    others = _rhythm(rng, 0.25)
    hits: list[Hit] = []
    if rng.random() < 0.5:
        hits.append(Hit(begin, "crash", _velocity(rng, 100)))
    for bar in range(bars):
        at = begin + bar * BAR
        hits += [Hit(at + s, "kick", _velocity(rng, 112)) for s in kick]
        hits += [Hit(at + s, backbeat, _velocity(rng, 105)) for s in snare]
        hits += [Hit(at + s, hat, _velocity(rng, 88 if s % 4 == 0 else 68)) for s in hats if rng.random() < 0.96]
        if open_hat:
            hits += [Hit(at + s, "open", _velocity(rng, 80)) for s in (2, 6, 10, 14)]
        if extra:
            hits += [Hit(at + s, extra, _velocity(rng, 85)) for s in others]
        if bar == bars - 1 and rng.random() < 0.6:
            drum = str(rng.choice(["snare", "tom", "snare"]))
            hits += [Hit(at + s, drum, 60 + 4 * s) for s in range(8, BAR, int(rng.choice([1, 2])))]
    return [Hit(h.start + swing * (h.start % 2 == 1), h.drum, h.velocity) for h in hits]


STEPS = (-2, -1, -1, 0, 0, 1, 1, 2, 4, -4)
OFTEN = (0.1, 0.15, 0.1, 0.15, 0.1, 0.1, 0.15, 0.1, 0.03, 0.02)
"""Steps between the notes of a voice, in degrees of the scale, and how often each occurs."""


def vocal_line(rng: np.random.Generator, piece: Piece, middle: int, bars: int) -> list[Sung]:
    """Compose a phrase of some bars: steps along the scale around a pitch, and a held note at the end."""
    scale = [12 * octave + piece.key + step for octave in range(11) for step in piece.scale]
    position = min(range(len(scale)), key=lambda i: abs(scale[i] - middle)) + int(rng.integers(-2, 3))
    density, lengths = rng.choice([2, 2, 3, 4]), list[int]()
    while sum(lengths) < 0.8 * BAR * bars:
        lengths.append(int(rng.choice([1, 2, 3, 4, 6] if density > 2 else [2, 4, 4, 6, 8])))
    lengths[-1] += int(rng.integers(2, 8))
    notes = []
    for length in lengths:
        position += int(rng.choice(STEPS, p=OFTEN))
        if abs(scale[position] - middle) > 9:
            position += 1 if scale[position] < middle else -1
        notes.append(Sung(length * piece.sixteenth, scale[position], float(10 ** (rng.normal(0, 2) / 20))))
    return notes
