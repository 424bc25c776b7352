"""Average the weights of checkpoints that were trained on from the same one.

python recipes/average_checkpoints.py A B --out OUT
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from metatasnet_fast import MultiTasNet, load_checkpoint


def average(networks: Sequence[MultiTasNet]) -> MultiTasNet:
    """The first network, with the mean of all networks' parameters and buffers, taken in float64."""
    settings = {network.config for network in networks}
    if len(settings) > 1:
        raise SystemExit("The checkpoints have different settings; their weights have no mean.")
    states = [network.state_dict() for network in networks]
    mean = {name: torch.stack([s[name].double() for s in states]).mean(0).to(x.dtype) for name, x in states[0].items()}
    networks[0].load_state_dict(mean)
    return networks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="names or folders")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    average([load_checkpoint(name) for name in args.checkpoints]).save_pretrained(args.out, half=True)


if __name__ == "__main__":
    main()
