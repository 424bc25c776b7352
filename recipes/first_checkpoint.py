"""Train a small Meta-TasNet on one core in about an hour, from a handful of songs with stems.

    python recipes/first_checkpoint.py --songs SONGS --out OUT --minutes 60

SONGS holds one folder per song with drums.ogg, bass.ogg, other.ogg and vocals.ogg, 44.1 kHz stereo; the mixture is their
sum. The song named by --held-out is never trained on: it gives the scores. The bundled checkpoint was made by this script
from "Everything is Free" by Software-Entwicklungskit (CC0). What it does differently from the authors' training, and why:

- Most songs have no bass stem (a bass line may hide in `other`). The loss leaves a stem out wherever it does not sound, so no
  song teaches that its bass is silent; and half of the bass lines are synthesised, added to an `other` without low frequencies.
- Songs are few, so each is cached at three speeds, and stems of different songs are mixed.
- Learning rate falls to 0 with the time budget. The weights that are kept are an exponential moving average, at the end mixed
  with its own state after a fifth of the time (--early-share), which holds back what was learnt of these few songs by heart.

It goes on where it was interrupted if it is started again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatasnet_fast.audio import resample
from metatasnet_fast.config import INSTRUMENTS, MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet

CONFIG = MetaTasNetConfig(
    N=96,
    L=40,
    W=40,
    B=64,
    H=96,
    stack=2,
    num_mels=64,
    stages_num=2,
    similarity_loss_weight=0.0,
    dissimilarity_loss_weight=0.0,
    reconstruction_loss_weight=0.0,
)
RATES = tuple(stage.sampling_rate for stage in CONFIG.stages)
SPEEDS = (0.9, 1.0, 1.1)
BASS, OTHER = INSTRUMENTS.index("bass"), INSTRUMENTS.index("other")
SOUNDS = 1e-2
"""Share of a mixture's energy above which a stem, or the rest of the mixture, counts as sounding."""

Track = list[NDArray[np.int16]]
"""One array (stem, channel, sample) for each rate; `other` without low frequencies is the fifth stem."""


def high_pass(x: Tensor, rate: int, edge: float = 140.0) -> Tensor:
    """Zero-phase filter of eighth order in amplitude."""
    frequency = torch.fft.rfftfreq(x.shape[-1], 1 / rate)
    return torch.fft.irfft(torch.fft.rfft(x) / (1 + (edge / frequency.clamp(min=1.0)) ** 8), n=x.shape[-1])


def to_int16(stems: Tensor, path: Path) -> None:
    """Normalise by the deviation of the mono mixture, as the authors do; one deviation is stored as 2048."""
    scaled = stems / stems[:4].sum(0).mean(0).std() * 2048
    np.save(path, scaled.round().clamp(-32768, 32767).short().numpy())


def cache_song(folder: Path, cache: Path, speeds: tuple[float, ...]) -> None:
    """Write every rate and speed of a song, unless that is done."""
    done = cache / f"{folder.name}.done"
    if done.exists():
        return
    audio = [torch.from_numpy(sf.read(folder / f"{name}.ogg", dtype="float32")[0].T.copy()) for name in INSTRUMENTS]
    for speed in speeds:
        for rate in RATES:
            stems = [resample(x, round(44100 * speed), rate) for x in audio]
            stems.append(high_pass(stems[OTHER], rate))
            length = min(x.shape[-1] for x in stems)
            to_int16(torch.stack([x[:, :length] for x in stems]), cache / f"{folder.name}_{speed}_{rate}.npy")
    done.touch()


def load_track(cache: Path, name: str, speed: float) -> Track:
    return [np.load(cache / f"{name}_{speed}_{rate}.npy", mmap_mode="r") for rate in RATES]


def synthesise_bass(rng: np.random.Generator, seconds: int) -> list[NDArray[np.float32]]:
    """Bass lines of decaying harmonics in random timbres, patterns and tempi; one signal for each rate, of unit power."""
    rate = RATES[-1]
    line = np.zeros(seconds * rate, np.float32)
    at = 0
    while at < len(line):
        root, beat = rng.uniform(32, 75), 60 / rng.uniform(75, 150) / rng.choice([1, 2, 2, 4])
        steps, rests = rng.choice([0, 0, 0, 3, 5, 7, 10, 12, -2], 8), rng.random(8) < 0.25
        slope, odd = rng.uniform(0.6, 2.2), rng.random() < 0.3
        decay, brightness, hold = rng.uniform(0.2, 4), rng.uniform(0.0, 0.8), rng.uniform(0.5, 1.0)
        for step in range(16):
            length = int(beat * rate)
            t = np.arange(length, dtype=np.float32) / rate
            if at < len(line) and not rests[step % 8]:
                f = root * 2 ** (steps[step % 8] / 12)
                k = np.arange(1, min(30, int(0.45 * rate / f)) + 1, 2 if odd else 1, dtype=np.float32)[:, None]
                tone = (
                    np.sin(2 * np.pi * k * f * t + rng.uniform(0, 6.28, k.shape))
                    / k**slope
                    * np.exp(-brightness * k * t)
                )
                envelope = (
                    np.minimum(1, t / 0.004) * np.exp(-decay * t) * np.clip((hold * length / rate - t) / 0.01, 0, 1)
                )
                stop = min(len(line), at + length)
                line[at:stop] += (tone.sum(0) * envelope / tone[0].std())[: stop - at]
            at += length
    return [resample(torch.from_numpy(line / line.std()), rate, r).numpy() for r in RATES]


class Sampler:
    """Training items (stem, sample) at every rate, cut at the same times."""

    def __init__(self, cache: Path, names: list[str], seconds: float, rng: np.random.Generator) -> None:
        self.tracks = [load_track(cache, name, speed) for name in names for speed in SPEEDS]
        self.rng = rng
        self.frames = round(seconds * RATES[0]) // CONFIG.W
        self.synthetic = synthesise_bass(rng, 600)
        second = RATES[0]
        self.bass = []
        for index, track in enumerate(self.tracks):
            bass = track[0][BASS, 0]
            power = np.square(bass[: len(bass) // second * second].astype(np.float32)).reshape(-1, second).mean(1)
            # 40 is about -34 dB of the mixture, in int16.
            self.bass += [(index, int(s) * second // CONFIG.W) for s in np.flatnonzero(power > 40**2)]
        self.explicit = {index for index, _ in self.bass}

    def cut(self, index: int, stem: int, channel: int, start: int) -> list[Tensor]:
        """`start` in latent frames, which fall on samples of every rate."""
        pieces = []
        for stage, data in zip(CONFIG.stages, self.tracks[index], strict=True):
            first = start * stage.W
            pieces.append(
                torch.from_numpy(data[stem, channel, first : first + self.frames * stage.W] / np.float32(2048))
            )
        return pieces

    def start(self, index: int) -> int:
        return int(self.rng.integers(self.tracks[index][0].shape[-1] // CONFIG.W - self.frames - 1))

    def added_bass(self) -> list[Tensor]:
        """A bass line from one of the songs that have one, or a synthetic one."""
        if self.rng.random() < 0.4:
            index, start = self.bass[self.rng.integers(len(self.bass))]
            start = max(0, start - int(self.rng.integers(self.frames)))
            start = min(start, self.tracks[index][0].shape[-1] // CONFIG.W - self.frames - 1)
            return self.cut(index, BASS, int(self.rng.integers(2)), start)
        start = int(self.rng.integers(len(self.synthetic[0]) // CONFIG.W - self.frames))
        lines = zip(self.synthetic, CONFIG.stages, strict=True)
        return [torch.from_numpy(line[start * s.W : (start + self.frames) * s.W]) for line, s in lines]

    def item(self) -> list[Tensor]:
        """One item; four of ten are as the song has them, the others take each stem from any song."""
        rng = self.rng
        mixed = rng.random() < 0.6
        index = int(rng.integers(len(self.tracks)))
        start, channel = self.start(index), int(rng.integers(2))
        stems = []
        for stem in range(4):
            if mixed:
                index = int(rng.integers(len(self.tracks)))
                start, channel = self.start(index), int(rng.integers(2))
            if stem == BASS and rng.random() < (0.8 if mixed else 0.4):
                pieces, added = self.added_bass(), True
            elif stem == BASS:
                pieces, added = self.cut(index, BASS, channel, start), index in self.explicit
            else:
                # Beside a bass, an `other` that may hold its song's bass line goes without its low frequencies.
                filtered = stem == OTHER and added and index not in self.explicit
                pieces = self.cut(index, 4 if filtered else stem, channel, start)
            gain = rng.uniform(0.4, 1.6) if mixed else rng.uniform(0.75, 1.25)
            sign = rng.choice([-1, 1]) if mixed else 1
            stems.append([float(gain * sign) * x for x in pieces])
        level = float(rng.uniform(0.7, 1.3) * rng.choice([-1, 1]))
        return [level * torch.stack([pieces[s] for pieces in stems]) for s in range(len(RATES))]

    def batch(self, size: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Mixtures (b, 1, T_s), sources (b, 4, 1, T_s) and masks (b, 4, 1) for each stage."""
        items = [self.item() for _ in range(size)]
        sources = [torch.stack(x)[:, :, None] for x in zip(*items, strict=True)]
        mixes = [x.sum(1) for x in sources]
        # A stem counts where it and something else sound: in dB, hopeless and trivial items would weigh as much as the others.
        power = sources[-1].square().mean(-1)
        rest = (mixes[-1][:, None] - sources[-1]).square().mean(-1)
        mask = ((power > SOUNDS * (power + rest)) & (rest > SOUNDS * (power + rest)) & (power > 1e-4)).float()
        return mixes, sources, [mask] * len(RATES)


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    projection = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    return 10 * torch.log10(projection.square().sum(-1) / (estimate - projection).square().sum(-1))


@torch.no_grad()
def evaluate(network: MultiTasNet, track: Track) -> dict[str, dict[str, float]]:
    """Median SI-SDR, dB, mono, last stage, over the 8 s pieces in which a stem sounds; `mixture` is that of the mixture."""
    sources = [torch.from_numpy(x[:4].mean(1, dtype=np.float32) / 2048) for x in track]
    length = min(x.shape[-1] // stage.W for x, stage in zip(sources, CONFIG.stages, strict=True))
    sources = [x[:, : length * stage.W] for x, stage in zip(sources, CONFIG.stages, strict=True)]
    mixes = [x.sum(0) for x in sources]
    estimates = network.inference([(x / x.std())[None, None] for x in mixes], n_chunks=8)[-1][0, :, 0]
    piece = 8 * RATES[-1]
    count = estimates.shape[-1] // piece
    target, mix, estimate = (
        x[..., : count * piece].unflatten(-1, (count, piece)) for x in (sources[-1], mixes[-1], estimates)
    )
    scores = {}
    for stem, name in enumerate(INSTRUMENTS):
        power, total = target[stem].square().mean(-1), mix.square().mean(-1)
        sounding = power > SOUNDS * total
        before, after = (si_sdr(x[sounding], target[stem, sounding]) for x in (mix, estimate[stem]))
        scores[name] = {
            "pieces": int(sounding.sum()),
            "mixture": round(float(before.median()), 2),
            "separated": round(float(after.median()), 2),
            "improvement": round(float((after - before).median()), 2),
        }
    return scores


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    cache = args.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in args.songs.iterdir() if path.is_dir())
    for name in names:
        cache_song(args.songs / name, cache, (1.0,) if name == args.held_out else SPEEDS)
    held_out = load_track(cache, args.held_out, 1.0)
    sampler = Sampler(cache, [n for n in names if n != args.held_out], args.seconds, np.random.default_rng(args.seed))
    network, average = MultiTasNet(CONFIG), MultiTasNet(CONFIG).eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=args.rate)
    step, elapsed = 0, 0.0
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
        sampler.rng = np.random.default_rng([args.seed, step])
    else:
        network.compute_stats(sampler.batch(8) for _ in range(60))
        average.load_state_dict(network.state_dict())
    begin, saved, scored, early = time.monotonic() - elapsed, elapsed, elapsed, args.out / "early.pt"
    log, history = (args.out / "log.jsonl").open("a"), []
    while elapsed < 60 * args.minutes:
        progress = elapsed / (60 * args.minutes)
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * max(0.0, (progress - 0.3) / 0.7)))
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        loss, stats = network(*sampler.batch(args.batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            weight = max(0.003, 9 / (9 + step))
            for mean, new in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(new, weight)
        history.append(stats[0, 4:8].detach())
        elapsed = time.monotonic() - begin
        last = elapsed >= 60 * args.minutes
        if progress >= 0.21 and not early.exists():
            torch.save(average.state_dict(), early)
        if step % 50 == 0:
            sdr = torch.stack(history[-50:]).mean(0).tolist()
            print(json.dumps({"step": step, "minutes": elapsed / 60, "train": sdr}), file=log, flush=True)
        if last or elapsed - saved > 180:
            saved = elapsed
            parts = {"network": network, "average": average, "optimizer": optimizer}
            values: dict[str, object] = {name: part.state_dict() for name, part in parts.items()}
            torch.save(values | {"step": step, "elapsed": elapsed}, args.out / "state.part")
            (args.out / "state.part").replace(args.out / "state.pt")
            if last:
                for name, value in torch.load(early, weights_only=True).items():
                    average.state_dict()[name].lerp_(value, args.early_share)
            average.save_pretrained(args.out / "model", half=True)
        if last or elapsed - scored > 1500:
            scored = elapsed
            scores = evaluate(average, held_out)
            print(json.dumps({"step": step, "minutes": elapsed / 60, "held_out": scores}), file=log, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="training time, without the preparation of the songs"
    )
    parser.add_argument("--held-out", default="sodium")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--early-share", type=float, default=0.3, help="0 for none")
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
