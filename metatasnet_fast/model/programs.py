"""Make programs of a network ahead of its use: export the network, or compile its Triton kernels.

**Export**: as ONNX, which many runtimes read, or as a file of ``torch.export``. The exported program is
:meth:`Engine.separate` for the last stage, with the generated weights as constants. It takes mixtures ``mix_0``,
``mix_1``, ... (b, 1, T 2^s), one for each stage ``s`` at its sampling rate, and returns ``estimates`` (b, I, 1, T 2^s) of
the last stage. The batch b is free, and so is the length T: 129 times ``config.W`` or any longer multiple. Stereo is two
items of a batch, as in the paper.

**Compile**: in parallel, into Triton's cache, with or without a GPU. The launches of the network are recorded on tensors
without data. Each launch chooses a program by its arguments, as at run time. A few short inputs (of whole frames, and
of an odd number of samples) need the same programs as inputs of any length and batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._extras import require
from .._io import write_atomically, writing
from ..backends import Choice
from ..backends.cache import collect_parameters
from ..config import MetaTasNetConfig
from ..errors import CheckpointError
from ..precision import Precision
from .engine import Engine
from .methods import NetworkMethods
from .network import MultiTasNet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ..kernels.recording import Launch

__all__ = [
    "FORMATS", "LONGEST", "Recorded", "SHORTEST", "export", "exported_program", "precompile", "programs", "record",
]  # fmt: skip

FORMATS = {".onnx": "onnx", ".pt2": "pt2"}
"""Formats by the suffix of the file."""

LONGEST = 2**31 - 1
"""Most samples at the last stage's rate that a program accepts: 18 hours at 32 kHz."""

SHORTEST = 129
"""Fewest frames that a program accepts, 0.32 s: more than one tile of statistics, and enough for the spectrogram."""

OPSET = 18


class _Separation(nn.Module):
    """The module that is exported: it returns the last stage's estimates. Its weights become constants of the
    program."""

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
        backend: ``reference`` to use only PyTorch's operators; ``triton`` to use the operators of this library. Before
            such a program is loaded, ``metatasnet_fast.ops`` must be imported.

    Raises:
        BackendUnavailableError: if the backend cannot be used.
    """
    config = network.config
    with torch.no_grad():
        module = _Separation(network.engine(Choice.parse(backend, None)))
        return torch.export.export(module, _example(network, config), dynamic_shapes=(_free(config),))


def export(network: NetworkMethods, path: str | Path, format: str | None = None, backend: str = "reference") -> None:
    """Write a network as a program into a file, which appears whole or not at all.

    Args:
        network: the network. The program has the network's dtype.
        path: path of the file. The suffix ``.onnx`` or ``.pt2`` chooses the format.
        format: ``onnx`` or ``pt2``; needed if the file has another suffix.
        backend: as in :func:`exported_program`; for ONNX, only ``reference``.

    Raises:
        CheckpointError: for an unknown format, or for ONNX with another backend.
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
        optimize=False,  # the optimiser drops the 1e-8 that is added before the logarithm, and silence would become NaN
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


@dataclass(frozen=True)
class Recorded:
    """The launches of kernels and the calls of torch's operators of a network, in order.

    :mod:`metatasnet_fast.kernels.recording` defines the entries.
    """

    preparing: list[Any]
    """To prepare the weights."""
    running: list[Any]
    """To run the network."""


def record(
    config: MetaTasNetConfig, precision: Precision, capability: int, items: int, samples: int, training: bool
) -> Recorded:
    """Record what happens when the weights of a network are prepared, and the network runs on mixtures.

    Args:
        capability: compute capability of the GPU as a whole number: 90 for sm_90.
        items, samples: size of the mixtures, (items, 1, samples 2^s) for each stage s.
        training: record a training step without the optimiser; else a separation, in which only the last stage is
            decoded.
    """
    from ..backends.triton import TritonBackend
    from ..kernels.log_power import basis
    from ..kernels.recording import Recorder

    for index in range(config.stages_num):
        basis(config.stage(index).n_fft, torch.device("meta"))  # made once in a process, so it belongs to no run
    with torch.device("meta"):
        network = MultiTasNet(config)
        mixes = [torch.empty(items, 1, samples * 2**s) for s in range(config.stages_num)]
        sources = [torch.empty(items, len(config.instruments), 1, mix.shape[-1]) for mix in mixes]
        masks = [torch.empty(items, len(config.instruments), 1) for _ in mixes]
    with Recorder(capability) as recorder, torch.set_grad_enabled(training):
        backend, last = TritonBackend(), config.stages_num - 1
        engine = Engine.of(config, backend, precision, [collect_parameters(stage) for stage in network.stages])
        preparing = len(recorder.found)
        if training:
            dropout = engine.random_dropout(config.dropout)
            loss, _ = engine.loss([s.sum(1) for s in sources], sources, masks, dropout=dropout)
            loss.backward()
        else:
            engine.separate(mixes, {last})
    return Recorded(recorder.found[:preparing], recorder.found[preparing:])


def programs(config: MetaTasNetConfig, precision: Precision, capability: int, training: bool) -> list[Launch]:
    """Return one launch of each program that a network needs for inference, and with ``training`` also for training.

    ``capability`` is the compute capability of the GPU as a whole number: 90 for sm_90.
    """
    from ..kernels.recording import Launch, distinct

    samples = config.W * config.shortest_frames
    found: list[Any] = []
    for length, job in ((samples, False), (samples + 1, False), (samples + 2, False), (samples, True))[: 3 + training]:
        recorded = record(config, precision, capability, 2, length, job)
        found += recorded.preparing + recorded.running
    return distinct([each for each in found if isinstance(each, Launch)])


def precompile(
    config: MetaTasNetConfig,
    precision: Precision,
    capability: int,
    training: bool = False,
    workers: int | None = None,
    report: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Compile the programs of a network into Triton's cache, in several processes.

    Args:
        capability: compute capability of the target NVIDIA GPU as a whole number: 90 for sm_90. The GPU need not be in
            this machine.
        training: also compile the programs that only training needs.
        workers: number of processes; by default one for each core.
        report: called with the number of programs compiled so far, and the number of all programs.

    Returns:
        the number of programs.

    Raises:
        RuntimeError: if a program does not compile.
    """
    what = (config, precision, capability, training)
    total, done = len(programs(*what)), 0
    count = min(total, workers or os.cpu_count() or 1)
    with ProcessPoolExecutor(count, get_context("spawn"), _record, what) as pool:
        for each in as_completed([pool.submit(_compile, number) for number in range(total)]):
            each.result()
            done += 1
            report(done, total)
    return total


_recorded: list[Launch] = []
"""All launches of the network, in a worker process, which compiles some of these."""


def _record(*what: Any) -> None:
    from triton.runtime.driver import driver

    from ..kernels.recording import Target

    _recorded.extend(programs(*what))
    driver.set_active(Target(what[2]))


def _compile(number: int) -> None:
    from ..kernels.recording import compile_ahead

    compile_ahead(_recorded[number])
