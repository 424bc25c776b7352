"""Add layers to every stack of a trained network, so that it hears more of the past and of the future of a sample.

    python recipes/add_layers.py open-small LARGER --layers 8

A new block begins as a copy of its stack's last one whose outputs are zero: until it is trained, the network computes what it
did before.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import torch

from metatasnet_fast import load_checkpoint
from metatasnet_fast.model import MultiTasNet

BLOCK = re.compile(r"(.*\.tcn\.)(\d+)(\..*)")
OUTPUTS = (".res_out.kernel.", ".skip_out.kernel.")


def add_layers(network: MultiTasNet, layers: int) -> MultiTasNet:
    old = network.config.layers
    if layers <= old:
        raise SystemExit(f"The network has {old} layers in a stack: --layers must be more than that, got {layers}.")
    larger = MultiTasNet(replace(network.config, layers=layers))
    state = network.state_dict()
    for key, value in larger.state_dict().items():
        block = BLOCK.fullmatch(key)
        if block is None:
            value.copy_(state[key])
            continue
        stack, layer = divmod(int(block[2]), layers)
        value.copy_(state[f"{block[1]}{stack * old + min(layer, old - 1)}{block[3]}"])
        if layer >= old and any(name in key for name in OUTPUTS):
            value.zero_()
    return larger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the name of a bundled model, a file or a folder")
    parser.add_argument("out", metavar="LARGER", type=Path, help="the folder of the new model")
    parser.add_argument("--layers", type=int, required=True, help="in a stack")
    args = parser.parse_args()
    with torch.no_grad():
        add_layers(load_checkpoint(args.model), args.layers).save_pretrained(args.out)


if __name__ == "__main__":
    main()
