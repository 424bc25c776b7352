"""Other runtimes of neural networks, which run the same network exported to ONNX: ONNX Runtime and OpenVINO, on a CPU.

A user could choose them instead of this library, so `bench --peers` measures them in the same rounds. Both get the
weights that the
generator makes as constants, the shapes of the case, torch's number of threads, and otherwise their default settings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..model import MultiTasNet, export
from ..precision import Precision

__all__ = ["ONNX_RUNTIME", "OPENVINO", "PEERS", "run_by"]

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"

Run = Callable[[], Tensor]

PEERS: dict[str, tuple[Precision, ...]] = {
    ONNX_RUNTIME: (Precision.float32,),
    OPENVINO: (Precision.float32, Precision.bfloat16),
}
"""Each runtime, with the precisions in which it runs a float32 network."""


def run_by(peer: str, network: MultiTasNet, precision: Precision, inputs: Sequence[Tensor]) -> Run:
    """Return a call that separates ``inputs``, which it reads at every call, by a runtime.

    Args:
        network: on the CPU, in float32.
        inputs: mixtures of all stages, (b, 1, T 2^s) float32.

    Raises:
        MissingDependencyError: without the runtime, or what writes ONNX.
    """
    make = _onnx_runtime if peer == ONNX_RUNTIME else _openvino
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        export(network, path)
        run = make(path, precision, [mix.numpy() for mix in inputs])  # the arrays share the tensors' memory
    return lambda: torch.from_numpy(run())


def _onnx_runtime(path: Path, precision: Precision, arrays: Sequence[Any]) -> Callable[[], Any]:
    runtime = require("onnxruntime", "Measuring ONNX Runtime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _openvino(path: Path, precision: Precision, arrays: Sequence[Any]) -> Callable[[], Any]:
    openvino = require("openvino", "Measuring OpenVINO")
    # It accepts the spectrogram's operator with fixed shapes only.
    shapes = {f"mix_{stage}": list(array.shape) for stage, array in enumerate(arrays)}
    model = openvino.convert_model(path, input=shapes)
    hint = {Precision.float32: "f32", Precision.bfloat16: "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request, output = compiled.create_infer_request(), compiled.outputs[0]
    return lambda: request.infer(list(arrays))[output]
