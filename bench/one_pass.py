"""Every backend of ours once over a tiny network: the short list that compute-sanitizer watches.

    compute-sanitizer --tool memcheck --error-exitcode 9 python -m bench.one_pass --device cuda

Inference in every precision a backend serves, and a training step where it trains, on lengths that fill no tile. Set
``PYTORCH_NO_CUDA_MEMORY_CACHING=1``, so that tensors lie in allocations of their own and an access beyond one is seen.
What Triton compiles for it takes minutes the first time, and longer under the tool: run it without, before.
Exit code 1 if a result is not finite or no backend but the reference could run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from metatasnet_fast import use_backend
from metatasnet_fast.backends import Request, available_backends, get_backend
from metatasnet_fast.benchmark import recipe
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision

# Widths of 16 and 48 are what the smallest tiles are made for; 24 mel bands and 149 frames fill none.
CONFIG = MetaTasNetConfig(N=48, B=16, H=48, layers=2, stack=2, num_mels=24, stages_num=2)
FRAMES = 149
PRECISIONS = (Precision.float32, Precision.tf32, Precision.bfloat16)


def passes(device: torch.device) -> list[tuple[str, bool]]:
    """What ran, and whether all of it was finite."""
    torch.manual_seed(0)
    network = recipe.network(CONFIG).to(device)
    sources = [torch.randn(2, 4, 1, FRAMES * stage.W, device=device) for stage in CONFIG.stages]
    mixes = [source.sum(1) for source in sources]
    counts = [torch.ones(2, 4, 1, device=device) for _ in sources]
    found = []
    for name, availability in available_backends().items():
        for precision in PRECISIONS:
            for training in (False, True):
                request = Request(device, precision, training, CONFIG)
                if name == "reference" or not availability.available or get_backend(name).supports(request) is not None:
                    continue
                network.zero_grad(set_to_none=True)
                with use_backend(name, precision.value), torch.set_grad_enabled(training):
                    if training:
                        loss, _ = network.train()(mixes, sources, counts)
                        loss.sum().backward()
                        values = [loss, *(p.grad for p in network.parameters() if p.grad is not None)]
                    else:
                        values = network.eval().inference(mixes, n_chunks=1)
                found.append((f"{name} {request}", all(bool(value.isfinite().all()) for value in values)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    found = passes(torch.device(parser.parse_args(arguments).device))
    for name, finite in found:
        print(f"{name}: {'finite' if finite else 'NOT FINITE'}")
    if not found:
        print("no backend but the reference could run")
    return 0 if found and all(finite for _, finite in found) else 1


if __name__ == "__main__":
    sys.exit(main())
