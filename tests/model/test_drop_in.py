"""A training script written for the authors' program runs with one changed import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metatasnet_fast import MultiTasNet, load_checkpoint
from metatasnet_fast.reference.network import log_power
from metatasnet_fast.training import SGDR, Ranger
from tests.support import TINY

Item = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


class Noise(Dataset[Item]):
    """Items as the authors' data set makes them: mixtures, sources and masks, a tuple over the stages each."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Item:
        generator = torch.Generator().manual_seed(index)
        sources = tuple(torch.randn(4, 1, 1000 * 2**s, generator=generator) for s in range(3))
        masks = tuple((s != 0).any(-1).float() for s in sources)
        return tuple(s.sum(0) for s in sources), sources, masks


def test_the_authors_training_loop_runs_and_its_checkpoint_loads(tmp_path: Path) -> None:
    args = TINY.to_namespace(batch_size=2, learning_rate=1e-3, weight_decay=5e-4, clip_gradient=5.0, sgdr_period=100)
    torch.manual_seed(42)
    network: Any = MultiTasNet(args)
    loader = DataLoader(Noise(), batch_size=args.batch_size, shuffle=True)
    network.compute_stats(loader)
    optimizer = Ranger(filter(lambda p: p.requires_grad, network.parameters()), weight_decay=args.weight_decay)
    decay = SGDR(optimizer, args.learning_rate, args.sgdr_period, 0.85)
    network.train()
    losses, steps = [], 0
    for _ in range(4):
        for batch in loader:
            steps += 1
            assert not decay(steps)
            loss, stats = network(*batch)
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip_gradient)
            optimizer.step()
            optimizer.zero_grad()
            assert stats.mean(0).detach().numpy().shape == (15,)
            losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    state = {
        "epoch": 0,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steps": steps,
        "args": args,
    }
    torch.save(state, tmp_path / "best_checkpoint")
    again = load_checkpoint(tmp_path / "best_checkpoint")
    mixes = [m[None] for m in Noise()[0][0]]
    network.eval()
    with torch.no_grad():
        outputs = [n.inference(mixes, n_chunks=2) for n in (network, again)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_statistics_are_the_mean_and_unbiased_deviation_over_items_and_frames() -> None:
    network = MultiTasNet(TINY)
    network.compute_stats(DataLoader(Noise(), batch_size=4))
    for index, stage in enumerate(TINY.stages):
        spectrogram = network.get_submodule(f"stages.{index}.encoder.spectrogram")
        mixes = torch.stack([Noise()[i][0][index] for i in range(6)])
        x = log_power(mixes, torch.hann_window(stage.n_fft), stage).double()
        mean, std = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True)
        assert torch.allclose(spectrogram.get_parameter("mean").double(), mean, atol=1e-6)
        assert torch.allclose(spectrogram.get_parameter("std").double(), std, atol=1e-6)


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    network = MultiTasNet(argparse.Namespace(**{**TINY.to_dict(), "dropout": 0.4}))
    batch = [[x[None] for x in part] for part in Noise()[0]]

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(network(*batch)[0].detach())

    assert loss(1) == loss(1) != loss(2)
    network.eval()
    assert loss(1) == loss(2)
