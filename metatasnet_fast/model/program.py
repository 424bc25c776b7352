"""Export a network as a program: as ONNX, which many runtimes read, or as a file of ``torch.export``.

The exported program is :meth:`Engine.separate` for the last stage, with the generated weights as constants. It takes
mixtures ``mix_0``, ``mix_1``, ... (b, 1, T 2^s), one for each stage ``s`` at its sampling rate, and returns
``estimates`` (b, I, 1, T 2^s) of the last stage. The batch b is free, and so is the length T: 129 times ``config.W`` or
any longer multiple. Stereo is two items of a batch, as in the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._extras import require
from .._io import write_atomically, writing
from ..backends import Choice
from ..config import MetaTasNetConfig
from ..errors import CheckpointError
from .engine import Engine
from .methods import NetworkMethods

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["FORMATS", "LONGEST", "SHORTEST", "export", "exported_program"]

FORMATS = {".onnx": "onnx", ".pt2": "pt2"}
"""Formats by the suffix of the file."""

LONGEST = 2**31 - 1
"""Most samples at the last stage's rate that a program accepts: 18 hours at 32 kHz."""

SHORTEST = 129
"""Fewest frames that a program accepts, 0.32 s: more than one tile of statistics, and enough for the spectrogram."""

OPSET = 18


class _Separation(nn.Module):
    """The module that is exported. Its weights are captured as constants: there is nothing left to train."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, *mixes: Tensor) -> Tensor:
        last = len(mixes) - 1
        return self.engine.separate(mixes, [last])[last]


def exported_program(network: NetworkMethods, backend: str = "reference") -> ExportedProgram:
    """Return the network as a program of ``torch.export``.

    Args:
        network: the network to export. Move it to the CPU first if machines without a GPU must load the program.
        backend: ``reference`` to use only PyTorch's operators; ``triton`` to use the operators of this library (import
            ``metatasnet_fast.ops`` before you load such a program).

    Raises:
        BackendUnavailableError: if the backend cannot serve.
    """
    config = network.config
    with torch.no_grad():
        module = _Separation(network.engine(Choice.parse(backend, None)))
        return torch.export.export(module, _example(network, config), dynamic_shapes=(_free(config),))


def export(network: NetworkMethods, path: str | Path, format: str | None = None, backend: str = "reference") -> None:
    """Write a network's program into a file, which appears whole or not at all.

    Args:
        network: the network; the program has the network's dtype.
        path: path of the file; the suffix ``.onnx`` or ``.pt2`` chooses the format.
        format: ``onnx`` or ``pt2``; needed for another suffix.
        backend: as in :func:`exported_program`; ONNX has ``reference`` only.

    Raises:
        CheckpointError: for an unknown format.
        MissingDependencyError: without the packages that write ONNX.
    """
    path = Path(path)
    format = format or FORMATS.get(path.suffix.lower())
    if format not in FORMATS.values():
        raise CheckpointError(f"{path} ends neither in .onnx nor in .pt2: name the file so, or say which format.")
    if format == "onnx":
        if backend != "reference":
            raise CheckpointError(f"ONNX knows no operators of the backend {backend}: export with the reference.")
        write_atomically(path, _onnx(exported_program(network), network.config))
    else:
        program = exported_program(network, backend)
        with writing(path) as file:
            torch.export.save(program, file)


def _example(network: NetworkMethods, config: MetaTasNetConfig) -> tuple[Tensor, ...]:
    """Return mixtures to trace with, whose sizes differ from every constant of the network."""
    parameter = next(network.parameters())
    frames = SHORTEST + 37
    return tuple(
        torch.zeros(3, 1, frames * config.stage(s).W, dtype=parameter.dtype, device=parameter.device)
        for s in range(config.stages_num)
    )


def _free(config: MetaTasNetConfig) -> tuple[dict[int, Any], ...]:
    last = config.stage(config.stages_num - 1)
    from torch.export import Dim  # which imports the compiler

    batch, frames = Dim("batch", min=1), Dim("frames", min=SHORTEST, max=LONGEST // last.W)
    return tuple({0: batch, 2: config.stage(s).W * frames} for s in range(config.stages_num))


def _onnx(program: ExportedProgram, config: MetaTasNetConfig) -> bytes:
    optimizer = require("onnxscript.optimizer", "Writing ONNX")
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[f"mix_{s}" for s in range(config.stages_num)],
        output_names=["estimates"],
        optimize=False,  # it takes the 1e-8 before the logarithm for a zero, and silence would become NaN
        verbose=False,
    )
    assert exported is not None
    optimizer.fold_constants(exported.model)
    optimizer.remove_unused_nodes(exported.model)
    model = exported.model_proto
    facts = {
        "instruments": ",".join(config.instruments),
        "sampling_rates": ",".join(str(config.stage(s).sampling_rate) for s in range(config.stages_num)),
        "multiple_of": ",".join(str(config.stage(s).W) for s in range(config.stages_num)),
    }
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    written: bytes = model.SerializeToString()
    return written
