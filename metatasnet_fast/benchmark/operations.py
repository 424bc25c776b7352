"""The fused operations one by one, against the authors' layers on the same values, forward and with backward.

Eager computes on activations (n, 4, channels, frames), as the authors' program has them; the fused operations on (n, 4, frames,
channels), as they store them. Each gets the values in its own layout, so neither pays for the other's; below float32 both
get them rounded. Where an operation reads the statistics that its predecessor leaves behind, they are taken here in a
pass of their own, inside the timed call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..backends.reference import arithmetic
from ..config import StageConfig
from ..precision import Precision
from ..reference import masking
from ..reference.weights import Convolution, Norm
from .cases import EAGER, Call, Case, Contender
from .contenders import COMPILED, Entrants, compiled
from .costs import Work
from .draws import varied
from .parity import Outputs

__all__ = ["Operation", "operation_case", "operations"]

FUSED = "triton"

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Operation:
    """An operation at some size.

    Args:
        activations: (n, 4, channels, frames) or (n, channels, frames) each, new in every round.
        parameters: float32.
        plain: the authors' layers, on activations as above.
        fused: the operation, on activations with frames before channels; its result likewise.
        macs, words: multiply-accumulates, and values that must be read or written at least, in the forward pass.
    """

    name: str
    activations: dict[str, Tensor]
    parameters: dict[str, Tensor]
    plain: Callable[[Values], Tensor]
    fused: Callable[[Values, bool], Tensor]
    macs: float
    words: float


def operations(config: StageConfig, items: int, frames: int) -> Iterator[Operation]:
    """The operations of a stage's masking network, its filters, and its overlap-add."""
    r = torch.Generator().manual_seed(7)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=r)

    def norm(channels: int) -> dict[str, Tensor]:
        return {"gamma": 1 + normal(4, channels, scale=0.2), "beta": normal(4, channels, scale=0.2)}

    b, h, n, rows = config.B, config.H, config.N, float(items * frames * 4)
    slope = {"slope": torch.full((1,), 0.25), "next_slope": torch.full((1,), 0.3)}
    yield Operation(
        "norm, product, residual",
        {"x": normal(items, 4, h, frames), "residual": normal(items, 4, b, frames)},
        {"weight": normal(4, b, h, scale=h**-0.5), "bias": normal(4, b), **norm(h), **slope},
        lambda v: _product(v, _normed(v["x"], v)) + v["residual"],
        _fused_product,
        rows * h * b,
        rows * (h + 2 * b),
    )
    yield Operation(
        "norm, dilated depthwise",
        {"x": normal(items, 4, h, frames)},
        {"weight": normal(4, h, 3), **norm(h), **slope},
        lambda v: F.prelu(
            masking.depthwise(_normed(v["x"], v), Convolution(v["weight"][:, :, None]), 8), v["next_slope"]
        ),
        lambda v, tf32: ops.depthwise(v["x"], v["weight"], 8, v["slope"], _statistics(v["x"], v), v["next_slope"])[0],
        rows * 3 * h,
        rows * 2 * h,
    )
    if config.partial_channels:
        k = config.in_channels
        yield Operation(
            "in_conv",
            {"x": normal(items, 1, n, frames), "partial": normal(items, 4, k - n, frames)},
            {"weight": normal(4, b, k, scale=k**-0.5), **norm(k), **slope},
            lambda v: _product(v, _normed(torch.cat([v["x"].expand(-1, 4, -1, -1), v["partial"]], 2), v)),
            _fused_in_conv,
            rows * k * b,
            rows * (k - n + n / 4 + b),
        )
    yield Operation(
        "mask tail",
        {"x": normal(items, 4, n, frames), "latent": normal(items, n, frames)},
        {**norm(n), **slope},
        lambda v: _normed(v["x"], v).softmax(1) * v["latent"][:, None],
        lambda v, tf32: ops.mask_tail(v["x"], v["latent"], v["slope"], _statistics(v["x"], v)),
        0.0,
        rows * 2 * n + rows / 4 * n,
    )
    width, taps, stride = config.encoder_width, config.kernel_sizes[-1], config.W
    padding = (taps - stride) // 2
    yield Operation(
        "filter bank",
        {"signal": normal(items, frames * stride)},
        {"bank": normal(3 * width, taps, scale=taps**-0.5)},
        lambda v: F.relu(F.conv1d(v["signal"][:, None], v["bank"][:, None], stride=stride, padding=padding)),
        lambda v, tf32: ops.filter_bank(v["signal"], v["bank"], stride, padding, tf32=tf32),
        rows / 4 * 3 * width * taps,
        rows / 4 * (stride + 3 * width),
    )
    channels = sum(config.decoder_widths)
    yield Operation(
        "overlap-add",
        {"x": normal(items, channels, frames)},
        {"bank": normal(channels, taps, scale=channels**-0.5)},
        lambda v: F.conv_transpose1d(v["x"], v["bank"][:, None], stride=stride, padding=padding)[:, 0],
        lambda v, tf32: ops.overlap_add(v["x"], v["bank"], stride, padding, tf32=tf32),
        rows / 4 * channels * taps,
        rows / 4 * (channels + stride),
    )


def _normed(x: Tensor, v: Values) -> Tensor:
    return masking.group_norm(F.prelu(x, v["slope"]), Norm(v["gamma"], v["beta"]))


def _product(v: Values, x: Tensor) -> Tensor:
    return masking.pointwise(x, Convolution(v["weight"][..., None], v.get("bias")))


def _statistics(x: Tensor, v: Values) -> ops.GroupNorm:
    return ops.GroupNorm(ops.group_statistics(x, v["slope"]), v["gamma"], v["beta"])


def _fused_product(v: Values, tf32: bool) -> Tensor:
    y, _ = ops.pointwise(
        v["x"],
        v["weight"],
        v["bias"],
        residual=v["residual"],
        norm=_statistics(v["x"], v),
        slope=v["slope"],
        next_slope=v["next_slope"],
        tf32=tf32,
    )
    return y


def _fused_in_conv(v: Values, tf32: bool) -> Tensor:
    return ops.in_conv(
        v["x"], v["partial"], v["weight"], v["slope"], v["gamma"], v["beta"], v["next_slope"], tf32=tf32
    )[0]


def operation_case(operation: Operation, entrants: Entrants, training: bool) -> Case:
    """The operation by eager PyTorch, ``torch.compile`` and the kernels; with ``training`` its gradients too."""
    device = entrants.device
    names, base = list(operation.activations), list(operation.activations.values())
    theirs = [x.to(device) for x in base]
    ours = [_frames_first(x).to(device) for x in base]
    draw = varied(base, [1] * len(base))

    def both(number: int) -> list[Tensor]:
        values = draw(number)
        return [*values, *(_frames_first(x) for x in values)]

    def call(precision: Precision, plain: bool, function: Callable[[Values], Tensor]) -> Call:
        dtype = precision.storage
        cast = {
            name: p.detach().to(device, dtype if plain else torch.float32) for name, p in operation.parameters.items()
        }
        parameters = {name: p.requires_grad_(training) for name, p in cast.items()}

        def run() -> Outputs:
            data = {
                n: x.detach().to(dtype).requires_grad_(training)
                for n, x in zip(names, theirs if plain else ours, strict=True)
            }
            with torch.set_grad_enabled(training):
                return _outputs({**data, **parameters}, function, names, plain, training)

        return run

    def eager(precision: Precision, by_compiler: bool) -> Call:
        function = compiled(operation.plain) if by_compiler else operation.plain

        def within(v: Values) -> Tensor:
            with arithmetic(Precision.tf32 if precision is Precision.tf32 else Precision.float32, device):
                return function(v)

        return call(precision, True, within)

    def fused(precision: Precision) -> Call:
        return call(precision, False, lambda v: operation.fused(v, precision is Precision.tf32))

    def expected(values: object) -> Outputs:
        wide = {n: x.detach().double() for n, x in zip(names, list(values)[: len(names)], strict=True)}  # type: ignore[call-overload]
        leaves = {**wide, **{n: p.detach().double() for n, p in operation.parameters.items()}}
        for leaf in leaves.values():
            leaf.requires_grad_(training)
        with torch.set_grad_enabled(training):
            return _outputs(leaves, operation.plain, names, True, training)

    contenders = []
    kernels = device.type == "cuda" or ops.operator.interpreted()
    for precision in entrants.precisions:
        contenders.append(Contender(EAGER, precision, functools.partial(eager, precision, False)))
        if entrants.compiled:
            contenders.append(Contender(COMPILED, precision, functools.partial(eager, precision, True)))
        if kernels:
            contenders.append(Contender(FUSED, precision, functools.partial(fused, precision)))
    times = 3 if training else 1
    return Case(
        name=f"{operation.name}{', forward and backward' if training else ''}",
        job="operation",
        sizes={name: list(x.shape) for name, x in operation.activations.items()},
        audio_seconds=None,
        inputs=[*theirs, *ours],
        draw=both,
        expected=expected,
        work=lambda precision: Work(times * operation.macs, times * operation.words * precision.storage.itemsize),
        contenders=contenders,
        graph=not training,
    )


def _frames_first(x: Tensor) -> Tensor:
    """Channels last in memory; a signal has no channels."""
    return x if x.dim() == 2 else x.transpose(-1, -2).contiguous()


def _outputs(v: Values, function: Callable[[Values], Tensor], names: list[str], plain: bool, training: bool) -> Outputs:
    """The result with channels before frames, and for training the gradients of its mean square, as they lie in memory."""
    y = function(v)
    y = y if y.dim() == 2 or plain else y.transpose(-1, -2)
    found = {"result": [y]}
    if training:
        given = torch.autograd.grad(
            y.to(torch.promote_types(y.dtype, torch.float32)).square().mean(), list(v.values()), allow_unused=True
        )
        for (name, leaf), gradient in zip(v.items(), given, strict=True):
            if gradient is not None:
                turned = name in names and not plain and leaf.dim() > 2
                found[f"d {name}"] = [gradient.transpose(-1, -2) if turned else gradient]
    return found
