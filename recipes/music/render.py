"""Render a written piece to stems: MIDI files through FluidSynth, or drums from samples and bass from oscillators."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mido
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from .drums import KEYS, RATE, play_samples, sample_kit, synthetic_kit
from .score import Part, Piece

__all__ = ["RATE", "Audio", "bass_stem", "drum_stem", "instrument_stem"]

TICKS = 120
"""Per sixteenth."""
KITS = (0, 8, 16, 24, 25, 26, 32, 40)
"""Standard, room, power, electronic, TR-808, TR-808 again, jazz, brush."""
Audio = NDArray[np.float32]


def drum_stem(rng: np.random.Generator, piece: Piece, font: Path, samples: Path) -> Audio:
    """Render drums from a soundfont's kit, recorded samples or synthesised drums; a third each."""
    kind = int(rng.integers(3))
    if kind == 0:
        keys = {drum: int(rng.choice(k)) for drum, k in KEYS.items()}
        events = [(h.start, 1.0, keys[h.drum], h.velocity) for h in piece.drums]
        return _fluidsynth(piece, [(9, int(rng.choice(KITS)), events)], font, rng)
    return play_samples(rng, piece, sample_kit(rng, samples) if kind == 1 else synthetic_kit(rng))


def bass_stem(rng: np.random.Generator, piece: Piece, font: Path) -> Audio:
    """Render a soundfont's bass, or in half of the pieces oscillators through a falling filter."""
    if rng.random() < 0.5:
        return _fluidsynth(piece, [_channel(0, piece.bass)], font, rng)
    return _oscillators(rng, piece)


def instrument_stem(rng: np.random.Generator, piece: Piece, parts: Sequence[Part], font: Path) -> Audio:
    """Render the parts of a piece, each on a channel of its own."""
    return _fluidsynth(piece, [_channel(i, part) for i, part in enumerate(parts)], font, rng)


Events = list[tuple[float, float, int, int]]


def _channel(index: int, part: Part) -> tuple[int, int, Events]:
    return index, part.program, [(n.start, n.length, n.pitch, n.velocity) for n in part.notes]


def _fluidsynth(
    piece: Piece, channels: Sequence[tuple[int, int, Events]], font: Path, rng: np.random.Generator
) -> Audio:
    """Play with FluidSynth; return (2, samples)."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=round(60e6 / piece.tempo))])
    events: list[tuple[int, mido.Message]] = []
    for channel, program, notes in channels:
        level = int(rng.integers(70, 110))
        track.append(mido.Message("program_change", channel=channel, program=program))
        track.append(mido.Message("control_change", channel=channel, control=7, value=level))
        track.append(mido.Message("control_change", channel=channel, control=91, value=int(rng.integers(0, 90))))
        if channel != 9:
            track.append(mido.Message("control_change", channel=channel, control=10, value=int(rng.integers(30, 98))))
        for start, length, pitch, velocity in notes:
            note = {"channel": channel, "note": int(np.clip(pitch, 0, 127))}
            events.append((round(start * TICKS), mido.Message("note_on", velocity=velocity, **note)))
            events.append((round((start + length) * TICKS) - 1, mido.Message("note_off", **note)))
    now = 0
    for at, message in sorted(events, key=lambda event: (event[0], event[1].type == "note_on")):
        track.append(message.copy(time=max(0, at - now)))
        now = max(now, at)
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder) / "piece.mid", Path(folder) / "piece.wav"
        mido.MidiFile(tracks=[track], ticks_per_beat=4 * TICKS).save(midi)
        options = f"-ni -q -g 0.5 -r {RATE} -T wav -F".split()
        command = ["fluidsynth", *options, str(wave), str(font), str(midi)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        audio, rate = sf.read(wave, dtype="float32", always_2d=True)
    assert rate == RATE
    return audio.T.copy()


def _oscillators(rng: np.random.Generator, piece: Piece) -> Audio:
    """Synthesise one voice of saw, square, triangle or sine waves; higher harmonics decay sooner, like a low-pass
    filter."""
    out = np.zeros(int((piece.bars * 16 * piece.sixteenth + 2) * RATE), np.float32)
    slope, odd = rng.uniform(0.7, 2.5), rng.random() < 0.35
    decay, brightness, attack = rng.uniform(0.0, 4), rng.uniform(0.0, 1.2), rng.uniform(0.002, 0.02)
    sub, drive = rng.uniform(0, 0.8) * (rng.random() < 0.3), rng.uniform(0.5, 3)
    for note in piece.bass.notes:
        f = 440 * 2 ** ((note.pitch - 69) / 12)
        begin, seconds = int(note.start * piece.sixteenth * RATE), note.length * piece.sixteenth
        count = min(int(seconds * RATE), len(out) - begin)
        if count < 200:
            continue
        t = np.arange(count, dtype=np.float32) / RATE
        tone = np.sin(np.pi * f * t) * sub
        for k in range(1, min(24, int(9000 / f)) + 1, 2 if odd else 1):
            tone += np.sin(2 * np.pi * k * f * t) * np.exp(-brightness * k * t) / k**slope
        envelope = np.minimum(1, t / attack) * np.exp(-decay * t) * np.minimum(1, (count / RATE - t) / 0.008)
        out[begin : begin + count] += np.tanh(drive * tone) * envelope * (note.velocity / 127)
    return np.stack([out, out])
