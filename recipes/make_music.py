"""Compose pieces of music by rules, and write them with exact stems: training data that anyone may use.

    apt-get install fluidsynth fluid-soundfont-gm sonic-pi-samples flite && pip install mido pyworld scipy
    python recipes/make_music.py MUSIC --pieces 140 --voices 56
    python recipes/make_music.py MUSIC --split test --seed 2 --pieces 6 --voices 6 --instrument guitar=24,25,26,27

docs/checkpoint.md calls it with more soundfonts, singers and drum kits, and names their packages. MUSIC/SPLIT/SEED-NUMBER
holds drums, bass, other and vocals as FLAC files of 44.1 kHz, two channels and 16 bits, and the mixture; `metatasnet-fast
prepare --stems MUSIC` reads them. A piece that exists is kept. The same seed and number give the same piece, to the bit,
with the same packages.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from music.render import RATE, Audio, bass_stem, compress, drum_stem, instrument_stem, process
from music.score import compose
from music.songs import song_vocals
from music.voice import VOICE_RATE, recordings, vocal_stem

from metatasnet_fast.audio import resample

LOUDNESS = 0.1
"""Standard deviation of a mixture without its vocals; full scale is 1."""


def make_piece(number: int, args: argparse.Namespace) -> None:
    """Write piece ``number`` into a folder of its own, unless that folder exists."""
    folder = args.out / args.split / f"{args.seed}-{number:03d}"
    if folder.exists():
        return
    rng = np.random.default_rng([args.seed, number])
    name, programs = args.instrument
    piece = compose(rng, args.seconds, programs)
    font = args.font[int(rng.integers(len(args.font)))]
    stems = {
        "drums": drum_stem(rng, piece, font, args.samples, args.kits),
        "bass": bass_stem(rng, piece, font),
        "other": instrument_stem(rng, piece, piece.other, font),
    }
    if piece.solo is not None:
        stems[name] = instrument_stem(rng, piece, [piece.solo], font)
    if args.effects:
        stems = {stem: process(rng, audio) for stem, audio in stems.items()}
    length = int(piece.bars * 16 * piece.sixteenth * RATE)
    levels = {"drums": rng.normal(0, 2), "bass": rng.normal(-2, 3), "other": rng.normal(-2, 3)}
    audio = {stem: _fitted(x, length, levels.get(stem, -2.0)) for stem, x in stems.items()}
    deviation = max(1e-6, float(sum(audio.values()).mean(0).std()))
    audio["vocals"] = np.zeros((2, length), np.float32)
    voice_rng, voice = np.random.default_rng([args.seed, number, 1]), None
    if number < args.voices:
        voice = resample(torch.from_numpy(vocal_stem(voice_rng, piece, args.singers)), VOICE_RATE, RATE).numpy()
    elif args.songs:
        voice = song_vocals(voice_rng, args.songs, length, RATE)
    if voice is not None:
        audio["vocals"] = 0.5 * deviation * _fitted(voice, length, 0.0)
    if args.effects:
        audio = compress(rng, audio)
    _write(folder, audio, LOUDNESS / deviation)


def _fitted(audio: Audio, length: int, decibels: float) -> Audio:
    """Cut or pad audio (2, n) to ``length`` samples, scale its standard deviation to ``decibels`` dB, where 0 dB is 1;
    silence stays silent."""
    padded = np.pad(audio, ((0, 0), (0, max(0, length - audio.shape[1]))))[:, :length]
    return np.float32(10 ** (decibels / 20) / max(1e-6, float(padded.std()))) * padded


def _write(folder: Path, audio: dict[str, Audio], gain: float) -> None:
    """Write stems and mixture; the folder appears when all of them are in it."""
    mixture = sum(audio.values())
    gain = min(gain, 0.99 / max(1e-6, *(float(np.abs(x).max()) for x in (mixture, *audio.values()))))
    partial_folder = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    for name, samples in {**audio, "mixture": mixture}.items():
        sf.write(partial_folder / f"{name}.flac", (gain * samples).T, RATE, subtype="PCM_16")
    partial_folder.rename(folder)


def _instrument(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, programs = text.partition("=")
    return name, tuple(int(program) for program in programs.split(","))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="MUSIC", type=Path, help="the folder of the pieces")
    parser.add_argument("--split", default="train", choices=("train", "valid", "test"))
    parser.add_argument("--pieces", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=75.0, help="of a piece, about")
    parser.add_argument("--voices", type=int, default=0, help="how many of the pieces have vocals")
    parser.add_argument(
        "--instrument",
        metavar="NAME=P,P",
        type=_instrument,
        default=("", ()),
        help="one stem more, played by one of these General MIDI programs (from 0), which `other` then lacks",
    )
    parser.add_argument(
        "--songs", metavar="SONG", type=Path, nargs="*", default=[], help="whose vocals the others have"
    )
    parser.add_argument(
        "--singers",
        metavar="PATH",
        nargs="*",
        default=[],
        help="people who sing beside Flite: for each a folder of spoken words, or a pattern of such files",
    )
    parser.add_argument("--effects", action="store_true", help="overdrive, rooms and compression")
    parser.add_argument("--font", type=Path, nargs="+", default=[Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")])
    parser.add_argument("--samples", type=Path, default=Path("/usr/share/sonic-pi/samples"), help="single drum strokes")
    parser.add_argument(
        "--kits",
        type=Path,
        nargs="*",
        default=[],
        help="more drums: folders of Hydrogen's kits, soundfonts with one kit",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="pieces made at once")
    return parser.parse_args(words)


def main() -> None:
    args = arguments()
    missing = [name for name in ("fluidsynth", "flite") if shutil.which(name) is None]
    missing += [str(path) for path in (*args.font, args.samples, *args.songs, *args.kits) if not path.exists()]
    missing += [singer for singer in args.singers if not recordings(singer)]
    if missing:
        raise SystemExit(f"{missing[0]} is not there: install what the beginning of this file names.")
    with ProcessPoolExecutor(args.workers) as pool:
        list(pool.map(partial(make_piece, args=args), range(args.pieces)))


if __name__ == "__main__":
    main()
