"""Measure what the windows of fast mode cost: the SDR of fast mode minus that of reference mode, on songs with stems.

    python bench/fast_against_reference.py SONGS [--model M] [--start 30] [--seconds 75]

SONGS holds one folder per song with drums, bass, other and vocals (.ogg, .wav or .flac); the mixture is their sum.
The program prints the SDR over the whole excerpt in both modes and its change, in dB, for each stem of each song. Stems
with less than a thousandth of the mixture's power are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from metatasnet_fast import INSTRUMENTS, Separator
from metatasnet_fast.audio import read_audio


def sdr(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """Return ``10 log10(|s|^2 / |s - e|^2)`` over all channels and samples."""
    return float(10 * torch.log10(reference.square().sum() / (reference - estimate).square().sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", type=Path)
    parser.add_argument("--model", default="open-small")
    parser.add_argument("--start", type=float, default=30.0, help="where each excerpt begins, seconds")
    parser.add_argument("--seconds", type=float, default=75.0)
    args = parser.parse_args()
    separators = {mode: Separator(args.model, mode=mode) for mode in ("reference", "fast")}
    changes = []
    print(f"{'song':<12}{'stem':<8}{'reference':>10}{'fast':>8}{'change':>8}  dB")
    for folder in sorted(p for p in args.songs.iterdir() if p.is_dir()):
        files = {stem: next(folder.glob(f"{stem}.*")) for stem in INSTRUMENTS}
        audio = {stem: read_audio(path) for stem, path in files.items()}
        rate = audio["drums"].sample_rate
        part = slice(int(args.start * rate), int((args.start + args.seconds) * rate))
        stems = {stem: file.samples[:, part] for stem, file in audio.items()}
        mixture = sum(stems.values(), torch.zeros(()))
        estimates = {mode: separator.separate(mixture, rate) for mode, separator in separators.items()}
        for stem, true in stems.items():
            if true.square().mean() < 1e-3 * mixture.square().mean():
                continue
            before, after = (sdr(true, estimates[mode][stem]) for mode in ("reference", "fast"))
            changes.append(after - before)
            print(f"{folder.name:<12}{stem:<8}{before:>10.2f}{after:>8.2f}{after - before:>+8.3f}", flush=True)
    print(f"mean change {np.mean(changes):+.3f} dB, worst stem {min(changes):+.3f} dB, {len(changes)} stems")


if __name__ == "__main__":
    main()
