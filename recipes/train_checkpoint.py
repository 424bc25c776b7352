"""Train the bundled checkpoint on one CPU core.

    python recipes/build_dataset.py --songs SONGS --out DATA
    python recipes/train_checkpoint.py --data DATA --out OUT --minutes 95 [--start MODEL]

OUT/model is the checkpoint: an exponential moving average of the weights, in half precision. What differs from the authors'
training, and why: see docs/checkpoint.md. It goes on where it was interrupted if it is started again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training.codec_start import pair_signs, reconstruction, tilted
from training.network import separate, step_loss
from training.sampling import LONGEST, Sampler, Variety, held_out_pieces, read_tracks
from training.scoring import piece_scores, summary

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet, load_checkpoint

CODEC_STEPS = 800
CODEC_SHARE = 0.3
"""Of the learning rate, once the masks learn, too."""
CODEC_EVERY = 10
"""Steps of the masks between two of the codec alone, which keep it whole above 1 kHz."""


def configuration(args: argparse.Namespace) -> MetaTasNetConfig:
    off = {f"{name}_loss_weight": 0.0 for name in ("similarity", "dissimilarity", "reconstruction")}
    sizes = {name: getattr(args, name) for name in ("N", "L", "W", "B", "H", "stack", "num_mels")}
    return MetaTasNetConfig(stages_num=2, **sizes, **off)


@torch.no_grad()
def score(network: MultiTasNet, pieces: list[list[Tensor]], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    def run(mixes: Any) -> Tensor:
        return separate(network, [x[:, 0] for x in mixes], dtype)[-1][:, 0]

    return summary([piece_scores(run, [x.sum(0) for x in p], p, 8 * network.config.output_rate) for p in pieces])


class Training:
    """Network, moving average, optimiser and where they stand."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.config = args, configuration(args)
        self.dtype = torch.bfloat16 if args.precision == "bfloat16" else torch.float32
        self.network, self.average = MultiTasNet(self.config), MultiTasNet(self.config).eval()
        codec = [".encoder." in name or ".decoder." in name for name, _ in self.network.named_parameters()]
        groups = [
            [p for p, coded in zip(self.network.parameters(), codec, strict=True) if coded is wanted]
            for wanted in (False, True)
        ]
        self.optimizer = torch.optim.Adam([{"params": g} for g in groups], lr=args.rate, betas=(0.9, 0.98), fused=True)
        self.step, self.elapsed = 0, 0.0
        self.load_data()

    def load_data(self) -> None:
        self.tracks = read_tracks(self.args.data, tuple(s.sampling_rate for s in self.config.stages))
        rng = np.random.default_rng([self.args.seed, self.step])
        args = self.args
        variety = Variety(args.tone, args.level, args.rests, tuple(args.kinds), args.songs, args.singers)
        self.sampler = Sampler(self.tracks, self.config, args.seconds, rng, variety)
        self.pieces = held_out_pieces(self.tracks, self.config)

    def resume(self) -> bool:
        path = self.args.out / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.sampler.rng = np.random.default_rng([self.args.seed, self.step])
        return True

    def save(self) -> None:
        parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}
        values: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        torch.save(values | {"step": self.step, "elapsed": self.elapsed}, self.args.out / "state.part")
        (self.args.out / "state.part").replace(self.args.out / "state.pt")
        self.average.save_pretrained(self.args.out / "model", half=True)

    def start(self) -> None:
        """Statistics of the training set's spectrograms and a paired codec, or a finished checkpoint of the same sizes."""
        if not self.args.start:
            self.network.compute_stats(([x[:, None] for x in self.sampler.batch(8)[0]],) for _ in range(60))
            pair_signs(self.network)
            return
        finished = load_checkpoint(self.args.start)
        if finished.config != self.config:
            raise SystemExit(f"{self.args.start} has other settings: {finished.config}, not {self.config}")
        self.network.load_state_dict(finished.state_dict())
        self.average.load_state_dict(finished.state_dict())

    def learn_codec(self) -> float:
        """Teach decoder(encoder(x)) = x first: what the codec loses no mask brings back."""
        value = 0.0
        for index in range(CODEC_STEPS):
            self.set_rate(3e-3 * min(1.0, (index + 1) / 20) * (1 - 0.95 * index / CODEC_STEPS))
            value = self.codec_step()
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer.state.clear()
        return value

    def codec_step(self) -> float:
        mixes, _, _ = self.sampler.batch(self.args.batch)
        slopes = torch.from_numpy(self.sampler.rng.uniform(0, 1.2, self.args.batch)).float()
        quality = reconstruction(self.network, tilted(mixes, [s.sampling_rate for s in self.config.stages], slopes))
        self.update(-quality)
        return float(quality.detach())

    def set_rate(self, rate: float) -> None:
        """The codec has learnt already when the masks begin: then it gets a part of the rate."""
        for group, share in zip(self.optimizer.param_groups, (1.0, CODEC_SHARE if self.step else 1.0), strict=True):
            group["lr"] = float(rate) * share

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.network.parameters() if p.grad is not None], 5.0)
        self.optimizer.step()

    def train_step(self, progress: float) -> Tensor:
        decay = 0.5 + 0.5 * np.cos(np.pi * max(0.0, (progress - 0.25) / 0.75))
        self.set_rate(self.args.rate * min(1.0, (self.step + 1) / 100) * decay)
        if self.step % CODEC_EVERY == CODEC_EVERY - 1:
            self.codec_step()
        # Norms see the whole item: long ones teach what phrases and rests do to them.
        long = self.step % LONGEST == LONGEST - 1
        size, lengths = (max(1, self.args.batch // LONGEST), LONGEST) if long else (self.args.batch, 1)
        mixes, sources, counts = self.sampler.batch(size, lengths)
        loss, values = step_loss(
            self.network, mixes, sources, counts, self.dtype, torch.tensor(self.args.stem_weights), torch.tensor([0.7, 1.3]),
            self.args.emphasis,
        )  # fmt: skip
        self.update(loss)
        self.step += 1
        with torch.no_grad():
            weight = max(0.0015, 9 / (9 + self.step))
            means, news = list(self.average.parameters()), list(self.network.parameters())
            torch._foreach_lerp_(means, news, weight)
        return values


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    training = Training(args)
    log = (args.out / "log.jsonl").open("a")

    def note(**values: Any) -> None:
        print(
            json.dumps({"step": training.step, "minutes": round(training.elapsed / 60, 2)} | values),
            file=log,
            flush=True,
        )

    started = time.monotonic()
    if not training.resume():
        training.start()
        if not args.start:  # A finished checkpoint's codec has learnt.
            note(codec=training.learn_codec(), seconds=time.monotonic() - started)
    started -= training.elapsed
    saved = scored = training.elapsed
    history: list[Tensor] = []
    note(tracks=len(training.tracks))
    while training.elapsed < 60 * args.minutes:
        history.append(training.train_step(training.elapsed / (60 * args.minutes)))
        training.elapsed = time.monotonic() - started
        last = training.elapsed >= 60 * args.minutes
        if training.step % 100 == 0:
            note(train=torch.stack(history[-100:]).nanmean(0).round(decimals=2).tolist())
        if last or training.elapsed - saved > 150:
            saved = training.elapsed
            training.save()
        if last or training.elapsed - scored > 600:
            scored = training.elapsed
            note(held_out=score(training.average, training.pieces, training.dtype))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what build_dataset.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=95.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--start", metavar="MODEL", help="name or folder of a checkpoint to go on from")
    parser.add_argument("--stem-weights", type=float, nargs=4, default=[1.2, 0.6, 0.75, 1.45], metavar="X",
                        help="of the loss: drums, bass, other, vocals")  # fmt: skip
    parser.add_argument("--emphasis", type=float, default=0.15, help="share of the loss that hears high frequencies")
    parser.add_argument("--tone", type=float, default=3.0, help="deviation, dB, of the gains that change a stem's tone")
    parser.add_argument("--level", type=float, default=9.0, help="items are up to so much louder or quieter, dB")
    parser.add_argument(
        "--rests", action=argparse.BooleanOptionalAction, default=True, help="let stems rest in parts of items"
    )
    parser.add_argument("--kinds", type=float, nargs=3, default=[0.3, 0.25, 0.45], metavar="X",
                        help="shares of songs as they are, synthesised pieces with vocals, stems of any tracks")  # fmt: skip
    parser.add_argument("--songs", type=float, default=0.6, help="share of the stems of any tracks that songs give")
    parser.add_argument("--singers", type=float, default=0.75, help="the same, of vocals")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    sizes = {"N": 96, "L": 40, "W": 20, "B": 64, "H": 96, "stack": 2, "num_mels": 64}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(words)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    train(args)


if __name__ == "__main__":
    main()
