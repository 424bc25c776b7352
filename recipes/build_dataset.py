"""Build the training set of the bundled checkpoint: songs at several speeds, and synthesised pieces with exact stems.

    apt-get install fluidsynth fluid-soundfont-gm sonic-pi-samples flite && pip install mido pyworld scipy
    python recipes/build_dataset.py --songs SONGS --out DATA

SONGS holds one folder per song with drums.ogg, bass.ogg, other.ogg and vocals.ogg, 44.1 kHz stereo; the mixture is their
sum. The song named by --held-out is left out. What is written again is the same, to the bit, with the same packages.

DATA/NAME/RATE.npy holds (stem, channel, sample) int16, DATA/NAME/track.json what is to be known about it. Songs have a fifth
stem, `other` without low frequencies: most of them have no bass stem, and a bass line may hide in their `other`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from music.render import bass_stem, drum_stem, other_stem
from music.score import Piece, compose
from music.voice import VOICE_RATE, vocal_stem
from torch import Tensor
from training.sampling import UNIT

from metatasnet_fast.audio import resample
from metatasnet_fast.config import INSTRUMENTS

RATES = (8000, 16000)
SPEEDS = (1.0, 0.9, 1.1, 0.82, 1.2)
EXPLICIT_BASS = ("francium", "lithium", "sodium")
"""Songs whose whole bass is in the stem bass."""
HELD = 32
"""Seconds of each song, from its middle, that are never trained on: choices are made on them."""


def high_pass(x: Tensor, rate: int, edge: float = 140.0) -> Tensor:
    """Zero-phase filter of eighth order in amplitude."""
    frequency = torch.fft.rfftfreq(x.shape[-1], 1 / rate)
    return torch.fft.irfft(torch.fft.rfft(x) / (1 + (edge / frequency.clamp(min=1.0)) ** 8), n=x.shape[-1])


def write(
    folder: Path,
    stems: list[Tensor],
    rate: int,
    song: bool,
    explicit: bool,
    held: tuple[float, float] = (0.0, 0.0),
    deviation: float = 1.0,
) -> None:
    """Resample, give the mono mixture a deviation (1, as the authors do), and write; track.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for target in RATES:
        parts = [resample(x, rate, target) for x in stems]
        if song:
            parts.append(high_pass(parts[INSTRUMENTS.index("other")], target))
        length = min(x.shape[-1] for x in parts)
        audio = torch.stack([x[:, :length] for x in parts])
        scaled = audio / audio[:4].sum(0).mean(0).std() * UNIT * deviation
        np.save(folder / f"{target}.npy", scaled.round().clamp(-32768, 32767).short().numpy())
    values = {"song": song, "explicit": explicit, "held": held}
    (folder / "track.json").write_text(json.dumps(values), "utf-8")


def add_song(folder: Path, out: Path, speed: float) -> None:
    target = out / f"{folder.name}@{speed}"
    if (target / "track.json").exists():
        return
    audio = [torch.from_numpy(sf.read(folder / f"{name}.ogg", dtype="float32")[0].T.copy()) for name in INSTRUMENTS]
    seconds = audio[0].shape[-1] / 44100 / speed
    held = (0.45 * seconds, 0.45 * seconds + HELD / speed)
    write(target, audio, round(44100 * speed), True, folder.name in EXPLICIT_BASS, held)


def add_piece(number: int, out: Path, fonts: list[Path], samples: Path, seed: int) -> None:
    """A synthesised piece of about 75 s, without vocals."""
    target = out / f"piece-{number:03d}"
    if (target / "track.json").exists():
        return
    rng, piece = written(number, seed)
    font = fonts[number % len(fonts)]
    stems = [drum_stem(rng, piece, font, samples), bass_stem(rng, piece, font), other_stem(rng, piece, font)]
    length = int(piece.bars * 16 * piece.sixteenth * 44100)
    stems = [np.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))[:, :length] for x in stems]
    levels = 10 ** (rng.normal([0, -2, -2], [2, 3, 3]) / 20)
    stems = [x / max(1e-6, float(x.std())) * np.float32(level) for x, level in zip(stems, levels, strict=True)]
    stems.append(np.zeros_like(stems[0]))
    write(target, [torch.from_numpy(x) for x in stems], 44100, False, True)


def add_voice(number: int, out: Path, seed: int) -> None:
    """Vocals for the piece of that number, alone, half as loud as a whole piece."""
    target = out / f"voice-{number:03d}"
    if (target / "track.json").exists():
        return
    _, piece = written(number, seed)
    voice = torch.from_numpy(vocal_stem(np.random.default_rng([seed, number, 1]), piece))
    voice = voice[:, : int(piece.bars * 16 * piece.sixteenth * VOICE_RATE)]
    silence = torch.zeros_like(voice)
    write(target, [silence, silence, silence, voice], VOICE_RATE, False, True, deviation=0.5)


def written(number: int, seed: int) -> tuple[np.random.Generator, Piece]:
    """A piece, and the generator that goes on from there."""
    rng = np.random.default_rng([seed, number])
    return rng, compose(rng, 75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", default="sodium")
    parser.add_argument("--pieces", type=int, default=60, help="synthesised pieces")
    parser.add_argument("--voices", type=int, default=0, help="how many of the pieces get vocals, too")
    sound = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[sound], help="General MIDI soundfonts, taken in turn")
    parser.add_argument("--samples", type=Path, default=Path("/usr/share/sonic-pi/samples"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    songs = sorted(path for path in args.songs.iterdir() if path.is_dir() and path.name != args.held_out)
    for speed in SPEEDS:
        for song in songs:
            add_song(song, args.out, speed)
    for number in range(args.pieces):
        add_piece(number, args.out, args.fonts, args.samples, args.seed)
    for number in range(args.voices):
        add_voice(number, args.out, args.seed)


if __name__ == "__main__":
    main()
