"""Render a written piece to stems: MIDI files through FluidSynth, bass from oscillators too, and drums from recorded samples,
drum kits of Hydrogen, or oscillators and noise."""

from __future__ import annotations

import re
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mido
import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import fftconvolve

from .score import Part, Piece

__all__ = ["RATE", "Audio", "add_room", "bass_stem", "compress", "drum_stem", "instrument_stem", "process"]

RATE = 44100
TICKS = 120
"""MIDI ticks per sixteenth note."""
KITS = (0, 8, 16, 24, 25, 26, 32, 40)
"""Programs of drum kits: standard, room, power, electronic, TR-808, TR-808 again, jazz, brush."""
Audio = NDArray[np.float32]
Kit = dict[str, Audio]


def drum_stem(rng: np.random.Generator, piece: Piece, font: Path, samples: Path, kits: Sequence[Path] = ()) -> Audio:
    """Render drums with a soundfont's kit, recorded samples or synthesised drums, equally often. Among ``kits``, the folders
    of Hydrogen's kits and the soundfonts with one kit are two more ways, each as often as the others."""
    fonts = [path for path in kits if path.suffix == ".sf2"]
    folders = [path for path in kits if path.suffix != ".sf2"]
    ways = ["font", "samples", "synthesis", *["hydrogen"] * bool(folders), *["font with one kit"] * bool(fonts)]
    way = str(rng.choice(ways))
    if way == "hydrogen":
        return play_samples(rng, piece, hydrogen_kit(rng, folders))
    if way == "samples":
        return play_samples(rng, piece, sample_kit(rng, samples))
    if way == "synthesis":
        return play_samples(rng, piece, synthetic_kit(rng))
    keys = {drum: int(rng.choice(k)) for drum, k in KEYS.items()}
    events = [(h.start, 1.0, keys[h.drum], h.velocity) for h in piece.drums]
    if way == "font with one kit":
        return _fluidsynth(piece, [(0, 0, events)], fonts[int(rng.integers(len(fonts)))], rng)
    return _fluidsynth(piece, [(9, int(rng.choice(KITS)), events)], font, rng)


def bass_stem(rng: np.random.Generator, piece: Piece, font: Path) -> Audio:
    """Render a soundfont's bass, or in half of the pieces oscillators through a falling filter."""
    if rng.random() < 0.5:
        return _fluidsynth(piece, [_channel(0, piece.bass)], font, rng)
    return _oscillators(rng, piece)


def instrument_stem(rng: np.random.Generator, piece: Piece, parts: Sequence[Part], font: Path) -> Audio:
    """Render the parts of a piece, each on a channel of its own."""
    return _fluidsynth(piece, [_channel(i, part) for i, part in enumerate(parts)], font, rng)


def process(rng: np.random.Generator, audio: Audio) -> Audio:
    """Overdrive audio (2, samples) in a third of the calls, and put it into a room in 40% of them."""
    if rng.random() < 0.33:
        scale = np.float32(rng.uniform(0.5, 4.0) / (3 * audio.std() + 1e-9))
        audio = np.tanh(scale * audio) / scale
    if rng.random() < 0.4:
        audio = add_room(rng, audio, RATE, longest=1.2)
    return audio


def compress(rng: np.random.Generator, audio: dict[str, Audio]) -> dict[str, Audio]:
    """Compress a mixture in half of the calls: every stem (2, samples) by the same gain, so that they still sum to it."""
    if rng.random() < 0.5:
        return audio
    power = np.square(np.asarray(sum(audio.values()), np.float64).mean(0))
    level = np.sqrt(uniform_filter1d(power, int(rng.uniform(0.005, 0.1) * RATE)))
    threshold = np.sqrt(power.mean()) * 10 ** (rng.uniform(-6, 3) / 20) + 1e-9
    gain = np.float32(np.maximum(level / threshold, 1) ** (1 / rng.uniform(1.5, 6) - 1))
    return {stem: x * gain for stem, x in audio.items()}


def add_room(rng: np.random.Generator, audio: Audio, rate: int, longest: float) -> Audio:
    """Add the echo of a room, decaying noise of 0.3 s to ``longest`` s for 60 dB, to audio (2, samples)."""
    seconds = rng.uniform(0.3, longest)
    time = np.arange(int(seconds * rate)) / rate
    noise = rng.standard_normal((2, len(time))) * np.exp(-6.9 * time / seconds)
    noise /= np.sqrt(np.square(noise).sum(1, keepdims=True))
    tail = fftconvolve(audio, noise.astype(np.float32), axes=1)[:, : audio.shape[1]]
    return audio + np.float32(rng.uniform(0.1, 0.6)) * tail.astype(np.float32)


Events = list[tuple[float, float, int, int]]


def _channel(index: int, part: Part) -> tuple[int, int, Events]:
    return index, part.program, [(n.start, n.length, n.pitch, n.velocity) for n in part.notes]


def _fluidsynth(
    piece: Piece, channels: Sequence[tuple[int, int, Events]], font: Path, rng: np.random.Generator
) -> Audio:
    """Play the notes of each channel with FluidSynth; return audio (2, samples)."""
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
        options = f"-ni -q -g 0.5 -r {RATE} -o synth.dynamic-sample-loading=1 -T wav -F".split()
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


# -- drums

KEYS = {
    "kick": (36, 35), "snare": (38, 40), "clap": (39,), "rim": (37,), "hat": (42, 44), "open": (46,), "ride": (51, 59, 53),
    "crash": (49, 57, 55), "tom": (45, 47, 48, 43, 50), "shaker": (70, 82, 54), "perc": (56, 62, 63, 64, 75, 76),
    "perc2": (60, 61, 65, 67, 69, 77),
}  # fmt: skip
"""General MIDI keys of channel 10 for each drum."""
SAMPLES = {
    "kick": "bd_* drum_bass_* drum_heavy_kick elec_hollow_kick elec_soft_kick",
    "snare": "sn_* drum_snare_* elec_snare elec_mid_snare elec_lo_snare elec_hi_snare elec_filt_snare",
    "clap": "perc_snap* elec_filt_snare sn_generic",
    "rim": "elec_wood elec_tick perc_snap2 drum_cowbell",
    "hat": "drum_cymbal_closed drum_cymbal_pedal elec_tick elec_cymbal",
    "open": "drum_cymbal_open elec_cymbal",
    "ride": "drum_cymbal_soft drum_cymbal_hard",
    "crash": "drum_splash_* drum_cymbal_hard",
    "tom": "drum_tom_* elec_fuzz_tom tabla_ghe*",
    "shaker": "drum_cymbal_closed elec_tick vinyl_scratch",
    "perc": "tabla_* drum_cowbell elec_blip* elec_wood elec_pop perc_* glitch_perc*",
    "perc2": "tabla_* glitch_perc* elec_twip elec_flip elec_plip",
}
"""File names, for each drum, of the CC0 samples that come with Sonic Pi."""


HYDROGEN_NAMES = {
    "kick": "kick|bass ?drum|thump|tone", "snare": "snare|cajon slap", "clap": "clap|snap", "rim": "stick|rim|clave|wood|click",
    "hat": "closed|pedal| cl$| pd$|hat (low|ring|bs)", "open": "open| op", "ride": "ride|bell",
    "crash": "crash|splash|cymbal|china", "tom": "tom|(?<!bass )drum [12]",
    "shaker": "shak|maraca|tambourine|pedal|closed", "perc": "conga|bongo|djembe|cowbell|agogo|cup",
    "perc2": "djembe|sangban|dununba|kenkeni|zap|glass|whistle",
}  # fmt: skip
"""Expressions that match, for each drum, the instruments' names in Hydrogen's kits."""


def sample_kit(rng: np.random.Generator, folder: Path) -> Kit:
    """Choose one recorded sample for each drum, at a random speed."""
    kit: Kit = {}
    for drum, patterns in SAMPLES.items():
        files = sorted(path for pattern in patterns.split() for path in folder.glob(f"{pattern}.flac"))
        kit[drum] = _stroke(rng, files[int(rng.integers(len(files)))])
    return kit


def hydrogen_kit(rng: np.random.Generator, folders: Sequence[Path]) -> Kit:
    """Choose one of the recordings for each drum, most of them from one kit, at a random speed; synthesise what no kit has."""
    everything = [hydrogen_drums(folder) for folder in folders]
    complete = [drums for drums in everything if {"kick", "snare", "hat"} <= drums.keys()]
    if not complete:
        raise SystemExit(f"None of {len(folders)} Hydrogen kits has a kick, a snare and a hi-hat: add one that has.")
    first, kit = complete[int(rng.integers(len(complete)))], Kit()
    for drum in HYDROGEN_NAMES:
        files = first.get(drum) or [path for drums in everything for path in drums.get(drum, [])]
        if files:
            kit[drum] = _stroke(rng, files[int(rng.integers(len(files)))])
    return kit if len(kit) == len(HYDROGEN_NAMES) else {**synthetic_kit(rng), **kit}


@cache
def hydrogen_drums(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a kit of Hydrogen for each drum that it has."""
    drums: dict[str, list[Path]] = {}
    root = ElementTree.parse(folder / "drumkit.xml").getroot()
    for instrument in root.iterfind(".//{*}instrument"):
        name = (instrument.findtext("{*}name") or "").lower()
        files = [folder / (element.text or "") for element in instrument.iterfind(".//{*}filename")]
        for drum, pattern in HYDROGEN_NAMES.items():
            if re.search(pattern, name):
                drums.setdefault(drum, []).extend(path for path in files if path.is_file())
    return {drum: files for drum, files in drums.items() if files}


def _stroke(rng: np.random.Generator, path: Path) -> Audio:
    """Read one stroke of a drum, mono, 3 s at most, at a random speed; its peak is 1."""
    audio, rate = sf.read(path, dtype="float32", always_2d=True)
    speed = rate / RATE * rng.uniform(0.85, 1.2)
    mono = audio[: 3 * rate].mean(1)
    sound = np.interp(np.arange(0, len(mono) - 1, speed), np.arange(len(mono)), mono).astype(np.float32)
    return sound / max(1e-6, float(np.abs(sound).max()))


def synthetic_kit(rng: np.random.Generator) -> Kit:
    """Synthesise analogue drums: swept sines, filtered noise, metallic squares."""

    def envelope(seconds: float, decay: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        t = np.arange(int(seconds * RATE)) / RATE
        return t, np.exp(-t / decay) * np.minimum(1, t / 0.001) * np.minimum(1, (seconds - t) / 0.01)

    def noise(count: int, low: float, high: float) -> NDArray[np.float64]:
        spectrum = np.fft.rfft(rng.standard_normal(count))
        f = np.fft.rfftfreq(count, 1 / RATE)
        spectrum *= 1 / (1 + (low / np.maximum(f, 1)) ** 4) / (1 + (f / high) ** 4)
        x = np.fft.irfft(spectrum, count)
        return x / x.std() * 0.3

    def tone(t: NDArray[np.float64], start: float, end: float, fall: float) -> NDArray[np.float64]:
        frequency = end + (start - end) * np.exp(-t / fall)
        return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)

    def burst(seconds: float, decay: float, low: float, high: float) -> NDArray[np.float64]:
        t, e = envelope(seconds, decay)
        return noise(len(t), low, high) * e

    def metal(seconds: float, decay: float) -> NDArray[np.float64]:
        t, e = envelope(seconds, decay)
        base = rng.uniform(300, 550)
        squares = sum(np.sign(np.sin(2 * np.pi * base * r * t)) for r in (1, 1.34, 1.51, 1.8, 2.3, 2.7))
        x = 0.2 * squares + noise(len(t), 5000, 16000) * rng.uniform(0.5, 2)
        spectrum = np.fft.rfft(x)
        spectrum *= 1 / (1 + (rng.uniform(5000, 9000) / np.maximum(np.fft.rfftfreq(len(x), 1 / RATE), 1)) ** 6)
        return np.fft.irfft(spectrum, len(x)) * e

    t, e = envelope(0.7, rng.uniform(0.08, 0.35))
    kick = np.tanh(rng.uniform(1, 4) * tone(t, rng.uniform(120, 400), rng.uniform(40, 62), rng.uniform(0.01, 0.05)) * e)
    kick += rng.uniform(0, 0.5) * np.pad(burst(0.02, 0.004, 1000, 9000), (0, len(t) - int(0.02 * RATE)))
    t, e = envelope(0.4, rng.uniform(0.05, 0.15))
    body = tone(t, rng.uniform(250, 380), rng.uniform(150, 220), 0.02) * e * rng.uniform(0.2, 0.8)
    snare = body + burst(0.4, rng.uniform(0.06, 0.18), rng.uniform(600, 2000), 12000) * rng.uniform(0.6, 1.4)
    clap = sum(
        np.roll(burst(0.35, rng.uniform(0.01, 0.08), 800, 4000), int(i * rng.uniform(0.008, 0.014) * RATE))
        for i in range(4)
    )
    t, e = envelope(0.5, rng.uniform(0.1, 0.25))
    start = rng.uniform(120, 350)
    tom = tone(t, start, start * 0.6, 0.08) * e
    t, e = envelope(0.08, 0.015)
    rim = tone(t, 1800, rng.uniform(700, 1700), 0.003) * e
    t, e = envelope(0.3, rng.uniform(0.03, 0.12))
    perc = tone(t, rng.uniform(400, 1200), rng.uniform(300, 900), 0.02) * e
    perc2 = metal(0.25, rng.uniform(0.03, 0.1))
    sounds = {
        "kick": kick, "snare": snare, "clap": clap, "rim": rim, "hat": metal(0.15, rng.uniform(0.015, 0.05)),
        "open": metal(0.6, rng.uniform(0.12, 0.3)), "ride": metal(1.2, rng.uniform(0.3, 0.6)),
        "crash": metal(2.0, rng.uniform(0.5, 0.9)), "tom": tom, "shaker": burst(0.12, rng.uniform(0.02, 0.05), 4000, 14000),
        "perc": perc, "perc2": perc2,
    }  # fmt: skip
    return {drum: (sound / np.abs(sound).max()).astype(np.float32) for drum, sound in sounds.items()}


LEVELS = {"kick": 1.0, "snare": 0.7, "clap": 0.6, "tom": 0.7, "crash": 0.5, "open": 0.35, "ride": 0.35}


def play_samples(rng: np.random.Generator, piece: Piece, kit: Kit) -> NDArray[np.float32]:
    """Play a piece's drum hits; return audio (2, samples)."""
    length = int((piece.bars * 16 * piece.sixteenth + 2) * RATE)
    out = np.zeros((2, length), np.float32)
    level = {drum: LEVELS.get(drum, 0.3) * 10 ** (rng.normal(0, 3) / 20) for drum in kit}
    pan = {drum: 0.0 if drum in ("kick", "snare") else rng.uniform(-0.6, 0.6) for drum in kit}
    for hit in piece.drums:
        sound = kit[hit.drum]
        begin = max(0, int((hit.start * piece.sixteenth + rng.normal(0, 0.002)) * RATE))
        span = min(len(sound), length - begin)
        gain = level[hit.drum] * (hit.velocity / 127) ** 1.5
        for channel, side in enumerate((1 - pan[hit.drum], 1 + pan[hit.drum])):
            out[channel, begin : begin + span] += gain * side * sound[:span]
    return out
