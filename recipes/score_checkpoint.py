"""Score a checkpoint on a song with stems, and on the test tracks of MUSDB18 or of its 7-second excerpts.

    python recipes/score_checkpoint.py --model NAME --song SONGS/sodium [--musdb ROOT] [--json FILE]

For each stem: medians, over 8 s pieces of the song or over tracks, of SI-SDR in dB at the network's output rate, mono, of the
mixture, of the ideal ratio mask and of the network; and the median of what the network gains over the mixture. Pieces count
in which the stem holds at least 1% of the mixture's energy. The song is scored on every backend and precision that this
machine has, and the largest difference from float32 on the backend `reference` is printed: of the medians, and of any piece.
Last, how dull it sounds: the level of the stems' sum, by `Separator`, against that of the mixture in three octaves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training.scoring import Scores, band_levels, piece_scores, summary

from metatasnet_fast import MultiTasNet, Separator, available_backends, load_checkpoint, use_backend
from metatasnet_fast.audio import read_audio, resample
from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.evaluation.tracks import open_tracks

PIECE_SECONDS = 8
BANDS = ((1000, 2000), (2000, 4000), (4000, 7500))
"""Hz."""


def at_rates(network: MultiTasNet, mix: Tensor, stems: Tensor, rate: int) -> tuple[list[Tensor], list[Tensor]]:
    """Mono mixture (n,) and stems (4, n) at every stage's rate, cut to whole latent frames."""
    stages = network.config.stages
    parts = [resample(torch.cat([mix[None], stems]), rate, stage.sampling_rate) for stage in stages]
    frames = min(x.shape[-1] // stage.W for x, stage in zip(parts, stages, strict=True))
    parts = [x[:, : frames * stage.W] for x, stage in zip(parts, stages, strict=True)]
    return [x[0] for x in parts], [x[1:] for x in parts]


def score(network: MultiTasNet, mixes: Sequence[Tensor], sources: Sequence[Tensor], by_piece: bool) -> Scores:
    """Scores on the backend in use."""

    def separate(inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return network.inference(inputs, n_chunks=8 if by_piece else 1)[-1][0, :, 0]

    piece = PIECE_SECONDS * network.config.output_rate if by_piece else None
    return piece_scores(separate, mixes, sources, piece)


def read_song(folder: Path) -> tuple[Tensor, Tensor, int]:
    """Mono mixture and stems; the mixture is the stems' sum."""
    files = [read_audio(next(folder.glob(f"{name}.*"))) for name in INSTRUMENTS]
    stems = torch.stack([file.samples.mean(0) for file in files])
    return stems.sum(0), stems, files[0].sample_rate


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(rows["drums"])
    print(f"{title}\n{'stem':<8}" + "".join(f"{column:>13}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<8}" + "".join(f"{row[column]:>13}" for column in columns), flush=True)


def score_song(network: MultiTasNet, folder: Path) -> dict[str, Any]:
    mix, stems, rate = read_song(folder)
    mixes, sources = at_rates(network, mix, stems, rate)
    with use_backend("reference", "float32"):
        exact = score(network, mixes, sources, by_piece=True)
    print_table(f"{folder.name}, backend reference, float32", summary([exact]))
    result: dict[str, Any] = {"song": folder.name, "scores": summary([exact]), "levels": levels(network, mix, rate)}
    result["differences"] = {}
    for name, state in available_backends().items():
        for precision in ("float32", "bfloat16"):
            if not state.available or (name, precision) == ("reference", "float32"):
                continue
            with use_backend(name, precision):
                other = score(network, mixes, sources, by_piece=True)
            medians = [abs(float(other[i].median(0)[0][2] - exact[i].median(0)[0][2])) for i in INSTRUMENTS]
            worst = [float((other[i] - exact[i])[:, 2].abs().max()) for i in INSTRUMENTS]
            result["differences"][f"{name}, {precision}"] = {"median": max(medians), "piece": max(worst)}
            print(
                f"{name}, {precision}: medians differ by {max(medians):.4f} dB at most, pieces by {max(worst):.4f} dB"
            )
    return result


def levels(network: MultiTasNet, mix: Tensor, rate: int) -> dict[str, float]:
    """What the stems of a mono mixture hold of its octaves, dB."""
    total = torch.stack(list(Separator(network).separate(mix, rate).values())).sum(0)
    found = band_levels(total, mix, rate, BANDS)
    print(
        "stems' sum less mixture: "
        + ", ".join(f"{a}-{b} Hz {x:.1f} dB" for (a, b), x in zip(BANDS, found, strict=True))
    )
    return {f"{a}-{b} Hz": x for (a, b), x in zip(BANDS, found, strict=True)}


def score_musdb(network: MultiTasNet, root: Path) -> dict[str, Any]:
    tracks = []
    for reader in open_tracks(root, "test"):
        track = reader.read()
        stems = torch.stack([track.stems[name].mean(0) for name in INSTRUMENTS])
        assert track.mixture is not None
        mix = track.mixture.mean(0)
        tracks.append(score(network, *at_rates(network, mix, stems, track.rate), by_piece=False))
    rows = summary(tracks)
    print_table(f"{len(tracks)} test tracks in {root.name} (excerpts cannot be compared with published scores)", rows)
    return {"tracks": len(tracks), "scores": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of a bundled model, or a folder")
    parser.add_argument("--song", type=Path, required=True)
    parser.add_argument("--musdb", type=Path)
    parser.add_argument("--json", type=Path, help="write the scores here, too")
    args = parser.parse_args()
    network = load_checkpoint(args.model)
    result = {"model": str(args.model), "song": score_song(network, args.song)}
    if args.musdb:
        result["musdb"] = score_musdb(network, args.musdb)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
