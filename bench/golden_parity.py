"""Compare every backend, on any device, with the recordings of the authors' program: its error, and the allowed error.

python -m bench.gpu.work golden --device cpu
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from metatasnet_fast import use_backend
from metatasnet_fast.backends import Request, available_backends, get_backend
from metatasnet_fast.precision import Precision
from tests.support import allowed, golden, relative_error

TRAINED = ("train_generated", "train_independent", "train_residual_bias")
PRECISIONS = (Precision.bfloat16, Precision.float32, Precision.float64)


def inference_errors(case: str, backend: str, precision: Precision, device: torch.device) -> list[dict[str, Any]]:
    """Return the error of every stage's separation of a recording, with the error that is allowed."""
    recording = golden(case)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    network = recording.network(dtype).to(device)
    mixes = [mix[:1].to(device) for mix in recording.mixes(dtype)]
    with torch.no_grad(), use_backend(backend, precision.value):
        outputs = network.inference(mixes, n_chunks=1)
    stride = recording.meta["stride"]
    return [
        {
            "output": f"separation, stage {s}",
            "error": relative_error(output[..., ::stride].cpu(), recording[f"infer/stage{s}"]),
            "allowed": allowed(case, precision.value, "infer", s),
        }
        for s, output in enumerate(outputs)
    ]


def training_errors(case: str, backend: str, precision: Precision, device: torch.device) -> list[dict[str, Any]]:
    """Return the errors of a training step's loss and statistics, and of its gradients where they are larger than noise.

    In bfloat16, loss and statistics share one error.
    """
    recording = golden(case)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    network = recording.network(dtype).to(device).train()
    stems = [stem.to(device) for stem in recording.sources(dtype)]
    sounds = [(stem.abs().amax(-1) > 0).to(dtype) for stem in stems]
    with use_backend(backend, precision.value):
        loss, stats = network([mix.to(device) for mix in recording.mixes(dtype)], stems, sounds)
        loss.sum().backward()
    own = {"loss": loss.detach().cpu(), "stats": stats.detach().cpu()}
    wanted = {name: recording[name] for name in own}
    times = 10.0 if precision is Precision.float32 else None
    limits = {name: allowed(case, precision.value, name, times=times) for name in own}
    rows = [{"output": name, "error": relative_error(own[name], wanted[name]), "allowed": limits[name]} for name in own]
    if precision is Precision.bfloat16:
        # A single number can be right by luck: in train_generated the authors' loss agrees a hundred times better than
        # its summands do. So loss and summands are checked together, against the authors' error in all these numbers.
        both = math.hypot(*(limits[name] * wanted[name].norm().item() for name in own))
        size = math.hypot(*(wanted[name].norm().item() for name in own))
        error = relative_error(list(own.values()), list(wanted.values()))
        rows = [{"output": "loss and stats", "error": error, "allowed": both / size}]
    if precision is not Precision.bfloat16:
        recorded = recording.under("grad/")
        ours = {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}
        error = relative_error([ours[name] for name in recorded], list(recorded.values()))
        limit = allowed(case, precision.value, "grad_all", times=times)
        rows.append({"output": "gradients", "error": error, "allowed": limit})
    return rows


def rows(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield each row as soon as it is known: inference before training, the slow float64 last. ``wrong`` says whether
    the error is larger than the parity rule allows.

    Args:
        tiny: use only one recording, to try the program.
    """
    for precision, training in itertools.product(PRECISIONS, (False, True)):
        measured = training_errors if training else inference_errors
        for name, entry in available_backends().items():
            if not entry.available or get_backend(name).supports(Request(device, precision, training)):
                continue
            for case in TRAINED[:1] if tiny else TRAINED if training else (*TRAINED, "full_size"):
                for row in measured(case, name, precision, device):
                    wrong = not row["error"] <= row["allowed"]
                    title = f"{name} {precision.value}, {case}, {row['output']}"
                    figures = f"{row['error']:.1e}  allowed {row['allowed']:.1e}  {'FAILED' if wrong else 'passed'}"
                    found = {"backend": name, "precision": precision.value, "recording": case, **row, "wrong": wrong}
                    yield {**found, "text": f"{title:<70} {figures}"}
