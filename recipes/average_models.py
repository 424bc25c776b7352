"""Average the weights of networks that were trained on from the same one.

    python recipes/average_models.py run/6000.pt run/8000.pt run/last.pt --out MODEL

MODEL is a folder, with the mean of every weight in float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from metatasnet_fast import load_checkpoint
from metatasnet_fast.model import MultiTasNet


def average(networks: list[MultiTasNet]) -> MultiTasNet:
    if any(network.config != networks[0].config for network in networks):
        raise SystemExit(
            "The models differ in size or instruments: average networks that differ in their weights only."
        )
    mean = MultiTasNet(networks[0].config)
    states = [network.state_dict() for network in networks]
    for key, value in mean.state_dict().items():
        value.copy_(torch.stack([state[key].double() for state in states]).mean(0))
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="checkpoints of `train`, folders or names")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the new model, in float16")
    args = parser.parse_args()
    with torch.no_grad():
        average([load_checkpoint(model) for model in args.models]).save_pretrained(args.out, half=True)


if __name__ == "__main__":
    main()
