"""Make the cases of a network: inference (windows through all stages), training (one step of the trainer) and the
preparation of weights. Our backends and eager PyTorch do all three, other runtimes only inference.

A user could choose ONNX Runtime or OpenVINO instead of this library, so ``bench --peers`` measures both in the same
rounds, on a CPU. Both get the network exported to ONNX with the generated weights as constants, the shapes of the case,
torch's number of threads, and otherwise their default settings.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._extras import require
from ..backends import Backend, Choice
from ..backends.cache import collect_parameters, prepare_all
from ..model import MultiTasNet, export
from ..model.engine import Engine
from ..precision import Precision
from ..training import Ranger
from ..training.step import GradientStep, Items
from . import roofline
from .cases import GRADIENTS, Call, Case, Implementation, Outputs, Participants, compiled
from .synthetic import mixtures, sources, varied

__all__ = [
    "PEERS", "engine", "frames_of", "implementations_of", "inference_case", "oracle", "preparation_case",
    "training_case",
]  # fmt: skip

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"

Run: TypeAlias = Callable[[], Tensor]
Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

PEERS: dict[str, tuple[Precision, ...]] = {
    ONNX_RUNTIME: (Precision.float32,),
    OPENVINO: (Precision.float32, Precision.bfloat16),
}
"""The other runtimes by name, each with the precisions in which it can run a float32 network."""


def run_by(peer: str, network: MultiTasNet, precision: Precision, inputs: Sequence[Tensor]) -> Run:
    """Return a call that separates ``inputs`` with another runtime; it reads their current values at every call.

    Args:
        network: on the CPU, in float32.
        inputs: mixtures of all stages, (b, 1, T 2^s) float32.

    Raises:
        MissingDependencyError: if the runtime, or a package for ONNX export, is missing.
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
    # OpenVINO accepts the spectrogram's operator with fixed shapes only.
    shapes = {f"mix_{stage}": list(array.shape) for stage, array in enumerate(arrays)}
    model = openvino.convert_model(path, input=shapes)
    hint = {Precision.float32: "f32", Precision.bfloat16: "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request, output = compiled.create_infer_request(), compiled.outputs[0]
    return lambda: request.infer(list(arrays))[output]


def engine(network: MultiTasNet, backend: Backend, precision: Precision, training: bool = False) -> Engine:
    """Return the network ready for inference or training, with its weights packed for this call alone."""
    stages = [(network.config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    with torch.set_grad_enabled(training):
        return Engine(network.config, backend, precision, prepare_all(backend, precision, stages))


def oracle(network: MultiTasNet, participants: Participants) -> Engine:
    """Return the same network in float64 on plain PyTorch, on the implementations' device."""
    there = copy.deepcopy(network).to(participants.device)
    return engine(there, participants.backend("reference"), Precision.float64)


def item_by_item(function: Callable[[list[Tensor]], Tensor], values: Sequence[Tensor], device: torch.device) -> Tensor:
    """Apply ``function`` to the batch one item at a time, in float64, and join the results on the CPU. The oracle needs
    twice the memory of an implementation, and items do not depend on one another."""
    items = range(len(values[0]))
    return torch.cat([function([v[i : i + 1].to(device, torch.float64) for v in values]).cpu() for i in items])


def frames_of(network: MultiTasNet, seconds: float) -> int:
    """Return the latent frames of a duration, but at least those of the shortest input."""
    config = network.config
    frames = round(seconds * config.sampling_rate / config.W)
    return max(frames, *(-(-stage.shortest // stage.W) for stage in config.stages))


def inference_case(network: MultiTasNet, participants: Participants, batch: int, seconds: float) -> Case:
    """Return the case of ``batch`` mono windows of ``seconds`` through all stages, up to the waveforms of the last stage.

    Args:
        network: on the CPU, in float32.
    """
    config, device = network.config, participants.device
    frames, last = frames_of(network, seconds), network.config.stages_num - 1
    there = copy.deepcopy(network).to(device)
    base = [mix.float() for mix in mixtures(sources(config, batch, frames * config.W, seed=1))]
    inputs = [mix.to(device) for mix in base]

    def outputs(ready: Engine, mixes: Sequence[Tensor]) -> Outputs:
        return {"estimate": [ready.separate(mixes, {last})[last]]}

    @torch.no_grad()
    def expected(values: Sequence[Tensor]) -> Outputs:
        ready = oracle(network, participants)
        return {"estimate": [item_by_item(lambda mixes: ready.separate(mixes, {last})[last], values, device)]}

    def plain(backend: Backend, precision: Precision) -> Call:
        ready = engine(there, backend, precision)
        return torch.no_grad()(lambda: outputs(ready, inputs))

    def by_compiler(backend: Backend, precision: Precision, mode: str | None) -> Call:
        ready = engine(there, backend, precision)
        function = compiled(lambda *mixes: ready.separate(mixes, {last})[last], mode)
        return torch.no_grad()(lambda: {"estimate": [function(*inputs)]})

    def by_peer(peer: str, precision: Precision) -> Call:
        run = run_by(peer, there, precision, inputs)
        return lambda: {"estimate": [run()]}

    implementations = implementations_of(network, participants, False, plain, by_compiler)
    if participants.peers and device.type == "cpu":
        implementations += [
            Implementation(peer, precision, functools.partial(by_peer, peer, precision))
            for peer, precisions in PEERS.items()
            for precision in precisions
            if precision in participants.precisions
        ]
    duration = frames * config.W / config.sampling_rate
    return Case(
        name=f"inference {batch}x{duration:g}s",
        job="inference",
        sizes={"batch": batch, "seconds": duration, "frames": frames, "stages": config.stages_num},
        audio_seconds=batch * duration,
        inputs=inputs,
        draw=varied(base, [2**s for s in range(config.stages_num)]),
        expected=expected,
        work=lambda precision: roofline.inference(config, frames, batch, precision.storage.itemsize),
        implementations=implementations,
    )


def implementations_of(
    network: MultiTasNet,
    participants: Participants,
    training: bool,
    plain: Callable[[Backend, Precision], Call],
    by_compiler: Callable[[Backend, Precision, str | None], Call] | None,
) -> list[Implementation]:
    """Return eager PyTorch, compiled PyTorch (by ``by_compiler``) and every other backend, in every precision."""
    found = []
    for name, backend, precision in participants.serving(network.config, training):
        found.append(Implementation(name, precision, functools.partial(plain, backend, precision)))
        if name != "reference" or by_compiler is None:
            continue
        for label, mode in participants.modes:
            found.append(Implementation(label, precision, functools.partial(by_compiler, backend, precision, mode)))
    return found


def training_case(network: MultiTasNet, participants: Participants, batch: int, seconds: float) -> Case:
    """Return the case of a training step as the trainer does it: forward, losses, backward, clipping of the gradients'
    norm, Ranger.

    The learning rate is 0: all of the arithmetic is done and the weights stay, so every round can be compared.
    """
    config, device = network.config, participants.device
    frames = frames_of(network, seconds)
    stems = [stem.float() for stem in sources(config, batch, frames * config.W, seed=4)]
    base = [*mixtures(stems), *stems]
    inputs = [x.to(device) for x in base]
    count = config.stages_num
    masks = torch.ones(batch, len(config.instruments), 1)

    def gradients(step: GradientStep, values: Sequence[Tensor]) -> Outputs:
        given = step(Items(values[:count], values[count:], [masks.to(values[0])] * count), 0)
        found = [p.grad for p in step.network.parameters() if p.grad is not None]
        # One number may be right by chance, so the loss is checked together with the statistics that it consists of.
        return {"loss and statistics": [torch.tensor([given.loss, *given.stats])], GRADIENTS: found}

    def expected(values: Sequence[Tensor]) -> Outputs:
        wide = copy.deepcopy(network).to(device, torch.float64)
        step = GradientStep(wide, Choice("reference", Precision.float64), recompute=True)
        found = gradients(step, [value.to(device, torch.float64) for value in values])
        return {name: [tensor.cpu() for tensor in tensors] for name, tensors in found.items()}

    def stepping(wrap: Wrap | None, backend: Backend, precision: Precision) -> Call:
        trained = copy.deepcopy(network).to(device)
        optimiser = Ranger(trained.parameters(), weight_decay=5e-4)
        optimiser.param_groups[0]["lr"] = 0.0
        if wrap or backend.name in participants.extra:
            _serve(trained, backend, precision, wrap or (lambda loss: loss))
        step = GradientStep(trained, Choice(backend.name, precision))

        def call() -> Outputs:
            outputs = gradients(step, inputs)
            optimiser.step()
            return outputs

        return call

    duration = frames * config.W / config.sampling_rate
    return Case(
        name=f"training step {batch}x{duration:g}s",
        job="training step",
        sizes={"batch": batch, "seconds": duration, "frames": frames, "stages": count},
        audio_seconds=batch * duration,
        inputs=inputs,
        draw=varied(base, [2**s for s in range(count)] * 2),
        expected=expected,
        work=lambda precision: roofline.training_step(config, frames, batch, precision.storage.itemsize),
        implementations=implementations_of(
            network,
            participants,
            True,
            functools.partial(stepping, None),
            lambda backend, precision, mode: stepping(lambda loss: compiled(loss, mode), backend, precision),
        ),
    )


def _serve(network: MultiTasNet, backend: Backend, precision: Precision, wrap: Wrap) -> None:
    """Replace ``network.engine`` so that the loss runs on ``backend`` in ``precision``, as returned by ``wrap``.

    ``wrap`` can compile the loss, and ``backend`` need not be registered.
    """
    stages = [(network.config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]

    def loss(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        ready = Engine(network.config, backend, precision, prepare_all(backend, precision, stages))
        return ready.loss(*arguments, **options)

    served = SimpleNamespace(loss=wrap(loss))

    def engine(choice: Choice | None = None, training: bool | None = None) -> Any:
        return served

    network.engine = engine  # type: ignore[method-assign]


class _Deferred(Mapping[str, Sequence[Tensor]]):
    """Outputs that are computed when they are first read. So the call that prepares weights can be checked outside the
    timed part."""

    def __init__(self, compute: Callable[[], Outputs]) -> None:
        self._outputs = functools.cache(compute)

    def __getitem__(self, name: str) -> Sequence[Tensor]:
        return self._outputs()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs())

    def __len__(self) -> int:
        return len(self._outputs())


def preparation_case(network: MultiTasNet, participants: Participants) -> Case:
    """Return the case that generates, folds and packs the weights of all stages, as after a change of a parameter.

    The inputs are the instruments' embeddings, which every generated weight depends on; the prepared weights are
    checked by separating the shortest possible signal, outside the timed call.
    """
    config, device = network.config, participants.device
    here, there = (copy.deepcopy(network).to(place) for place in (torch.device("cpu"), device))
    last = config.stages_num - 1
    inputs = _embeddings(there)
    base = [x.detach().clone().cpu() for x in inputs]
    probe = [mix.float() for mix in mixtures(sources(config, 1, frames_of(network, 0.0) * config.W, seed=3))]
    there_probe = [mix.to(device) for mix in probe]

    @torch.no_grad()
    def separated(ready: Engine, mixes: Sequence[Tensor]) -> Outputs:
        return {"estimate": [ready.separate(mixes, {last})[last]]}

    def expected(values: Sequence[Tensor]) -> Outputs:
        for embedding, value in zip(_embeddings(here), values, strict=True):
            embedding.copy_(value)
        return separated(oracle(here, participants), [mix.double() for mix in there_probe])

    def plain(backend: Backend, precision: Precision) -> Call:
        def call() -> Outputs:
            ready = engine(there, backend, precision)
            return _Deferred(lambda: separated(ready, there_probe))

        return call

    def draw(number: int) -> list[Tensor]:
        return [x + 0.1 * torch.sin(torch.arange(x.numel()).view_as(x) + number) for x in base]

    count = sum(p.numel() for p in network.parameters())
    return Case(
        name="preparation",
        job="preparation",
        sizes={"parameters": count},
        audio_seconds=None,
        inputs=inputs,
        draw=draw,
        expected=expected,
        work=lambda precision: roofline.preparation(config, count, precision.storage.itemsize),
        implementations=implementations_of(network, participants, False, plain, None),
    )


def _embeddings(network: MultiTasNet) -> list[Tensor]:
    return [p.detach() for name, p in network.named_parameters() if name.endswith("instrument_embedding.weight")]
