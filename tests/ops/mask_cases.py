"""Inputs and oracles for the operations of the masking network: each case as fused operation and as plain layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metatasnet_fast import ops
from metatasnet_fast.ops import BlockParameters, GroupNorm, Section, group_statistics
from metatasnet_fast.reference import network as oracle
from metatasnet_fast.reference.generator import BlockWeights, Convolution, Norm
from tests.ops.cases import gradients
from tests.support import assert_parity, relative_error

Leaves = dict[str, Tensor]


@dataclass
class MaskCase:
    """Tensors by name, in float64 but exact in float32; what the fused operation and the plain layers make of them."""

    name: str
    tensors: Leaves
    fused: Callable[[Leaves], Tensor]
    plain: Callable[[Leaves], Tensor]
    activations: frozenset[str]
    """Names of what is stored in the activations' dtype, and has items in its first dimension."""

    def leaves(self, dtype: torch.dtype, device: str = "cpu") -> Leaves:
        """Leaves: activations in ``dtype``, parameters in float32 at least."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            name: value.to(device, dtype if name in self.activations else wide, copy=True).requires_grad_()
            for name, value in self.tensors.items()
        }


def _drawn(seed: int, shapes: dict[str, tuple[int, ...]]) -> Leaves:
    r = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=r, dtype=torch.float64) for name, shape in shapes.items()}
    for name, value in drawn.items():
        if "slope" in name:
            drawn[name] = 0.25 + 0.05 * value
        elif "gamma" in name:
            drawn[name] = 1 + 0.3 * value
        elif value.dim() > 2 and name not in ("x", "v", "m", "latent"):
            drawn[name] = value / value[0].numel() ** 0.25
    return {name: value.float().double() for name, value in drawn.items()}


def _norm(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return oracle.group_norm(z, Norm(gamma, beta))


def in_conv_case(
    n: int = 2, frames: int = 37, first: int = 16, second: int = 8, outputs: int = 24, shared: bool = True, seed: int = 0,
    tf32: bool = False, instruments: int = 4,
) -> MaskCase:  # fmt: skip
    """Two operands, or one if ``second`` is 0; the first shared by the instruments or not."""
    k, i = first + second, instruments
    shapes = {
        "x": (n, 1 if shared else i, frames, first), "v": (n, i, frames, second), "weight": (i, outputs, k), "slope": (1,),
        "gamma": (i, k), "beta": (i, k),
    }  # fmt: skip
    tensors = _drawn(seed, shapes)
    if not second:
        del tensors["v"]

    def fused(p: Leaves) -> Tensor:
        return ops.in_conv(
            p["x"], p.get("v"), p["weight"], p["slope"], p["gamma"], p["beta"],
            p["slope"].detach().new_full((1,), 0.2), tf32=tf32,
        )[0]  # fmt: skip

    def plain(p: Leaves) -> Tensor:
        u = torch.cat([p["x"].expand(-1, i, -1, -1), *([p["v"]] if second else [])], dim=3).transpose(2, 3)
        z = _norm(F.prelu(u, p["slope"].to(u.dtype)), p["gamma"], p["beta"])
        return oracle.pointwise(z, Convolution(p["weight"][..., None])).transpose(2, 3)

    name = f"in_conv-{first}+{second}-{'shared' if shared else 'own'}-{frames}"
    return MaskCase(name, tensors, fused, plain, frozenset({"x", "v"}))


def check_that_inference_gives_the_bits_of_training(width: int, hidden: int, dtype: torch.dtype) -> None:
    p = blocks_case(n=1, frames=5, width=width, hidden=hidden, bias=True).leaves(dtype)
    parameters = BlockParameters(*(p.get(name) for name in BlockParameters._fields))  # type: ignore[arg-type]
    slope = torch.full((1,), 0.2)

    @torch.no_grad()
    def run(keep: int, activated: bool = False) -> tuple[Tensor, Tensor]:
        return ops.blocks(p["x"], parameters, (1, 2), slope, keep=keep, activated=activated)

    (skips, statistics), (kept, of_kept), (z, of_z) = run(0), run(1), run(0, activated=True)
    assert torch.equal(skips, kept)
    assert torch.equal(statistics, of_kept) and torch.equal(statistics, of_z)
    wide = skips.float()
    assert torch.equal(z, torch.where(wide > 0, wide, slope * wide).to(dtype))


def check_that_the_stream_may_start_by_a_norm(width: int, hidden: int, dtype: torch.dtype) -> None:
    p = blocks_case(n=2, frames=131, width=width, hidden=hidden, layers=1).leaves(dtype)
    parameters = BlockParameters(*(p.get(name) for name in BlockParameters._fields))  # type: ignore[arg-type]
    slope, x = torch.full((1,), 0.2), p["x"].transpose(0, 1).contiguous().transpose(0, 1)
    norm = GroupNorm(group_statistics(x, slope), *_drawn(3, {"gamma": (4, width), "beta": (4, width)}).values())

    @torch.no_grad()
    def run(x: Tensor, start: tuple[Tensor, GroupNorm] | None = None) -> tuple[Tensor, Tensor]:
        return ops.blocks(x, parameters, (1,), slope, keep=0, items=1, activated=True, start=start)

    (before, statistics), (y, of_y) = run(ops.group_norm(x, slope, norm)), run(x, (slope, norm))
    limit = torch.finfo(dtype).eps
    assert relative_error(y, before) <= limit and relative_error(of_y, statistics) <= limit


def mask_tail_case(
    n: int = 2, frames: int = 37, channels: int = 24, seed: int = 0, instruments: int = 4, softmax: int | None = None
) -> MaskCase:
    """Softmax over all instruments, or over the first ``softmax`` and sigmoids of the others."""
    i, competing = instruments, instruments if softmax is None else softmax
    shapes = {
        "m": (n, i, frames, channels), "latent": (n, frames, channels), "slope": (1,), "gamma": (i, channels),
        "beta": (i, channels),
    }  # fmt: skip

    def fused(p: Leaves) -> Tensor:
        norm = GroupNorm(group_statistics(p["m"], p["slope"]), p["gamma"], p["beta"])
        return ops.mask_tail(p["m"], p["latent"], p["slope"], norm, softmax)

    def plain(p: Leaves) -> Tensor:
        u = _norm(F.prelu(p["m"].transpose(2, 3), p["slope"].to(p["m"].dtype)), p["gamma"], p["beta"])
        masks = torch.cat([u[:, :competing].softmax(1), torch.sigmoid(u[:, competing:])], dim=1)
        return masks.transpose(2, 3) * p["latent"][:, None]

    return MaskCase(f"mask_tail-{channels}-{frames}", _drawn(seed, shapes), fused, plain, frozenset({"m", "latent"}))


def check_masked_latent(
    dtype: torch.dtype, n: int = 2, frames: int = 37, inputs: int = 24, channels: int = 40, instruments: int = 4,
    softmax: int | None = None, device: str = "cpu", bits: bool = True,
) -> None:  # fmt: skip
    """As close to float64 as the operations that store m; if ``bits``, which PyTorch's products do not promise, an item's are
    those that it has alone."""
    i = instruments
    shapes = {
        "x": (n, i, frames, inputs), "latent": (n, frames, channels), "weight": (i, channels, inputs), "slope": (1,),
        "gamma": (i, inputs), "beta": (i, inputs), "next_gamma": (i, channels), "next_beta": (i, channels),
    }  # fmt: skip

    @torch.no_grad()
    def plain(p: Leaves) -> Tensor:
        m = oracle.pointwise(_norm(p["x"].transpose(2, 3), p["gamma"], p["beta"]), Convolution(p["weight"][..., None]))
        u = _norm(F.prelu(m, p["slope"]), p["next_gamma"], p["next_beta"])
        competing = i if softmax is None else softmax
        masks = torch.cat([u[:, :competing].softmax(1), torch.sigmoid(u[:, competing:])], dim=1)
        return masks.transpose(2, 3) * p["latent"][:, None]

    case = MaskCase("masked_latent", _drawn(0, shapes), plain, plain, frozenset({"x", "latent"}))

    @torch.no_grad()
    def run(p: Leaves, stored: bool, part: slice = slice(None)) -> Tensor:
        x, latent = p["x"][part], p["latent"][part]
        norm, last = GroupNorm(group_statistics(x), p["gamma"], p["beta"]), (p["next_gamma"], p["next_beta"])
        if not stored:
            return ops.masked_latent(x, p["weight"], norm, p["slope"], *last, latent, softmax)
        m, statistics = ops.pointwise(x, p["weight"], norm=norm, next_slope=p["slope"])
        assert statistics is not None
        return ops.mask_tail(m, latent, p["slope"], GroupNorm(statistics, *last), softmax)

    expected, leaves = plain(case.leaves(torch.float64)), case.leaves(dtype, device)
    y, stored = run(leaves, False), run(leaves, True)
    limit = 1e-12 if dtype == torch.float64 else 1.1 * relative_error(stored.cpu(), expected)
    assert_parity("masked latent", y.cpu(), expected, limit)
    assert torch.equal(run(leaves, False), y)
    assert not bits or torch.equal(run(leaves, False, slice(1, None)), y[1:])
    assert run(leaves, False, slice(0, 0)).shape == (0, i, frames, channels)


def blocks_case(
    n: int = 2, frames: int = 37, width: int = 16, hidden: int = 24, layers: int = 2, stacks: int = 1, bias: bool = False,
    keep: int | None = None, items: int = 0, seed: int = 0, tf32: bool = False, instruments: int = 4,
) -> MaskCase:  # fmt: skip
    count, dilations = layers * stacks, tuple(2**i for i in range(layers)) * stacks
    i = instruments
    channels = (count, i, hidden)
    shapes = {
        "x": (n, i, frames, width), "conv1d": (count, i, hidden, width), "slope_1": (count,), "gamma_1": channels,
        "beta_1": channels, "taps": (*channels, 3), "slope_2": (count,), "gamma_2": channels, "beta_2": channels,
        "out": (count, i, 2 * width, hidden), "bias": (count, i, 2 * width),
    }  # fmt: skip
    tensors = _drawn(seed, shapes)
    if not bias:
        del tensors["bias"]

    def fused(p: Leaves) -> Tensor:
        parameters = BlockParameters(*(p.get(name) for name in BlockParameters._fields))  # type: ignore[arg-type]
        next_slope = p["slope_1"].detach().new_full((1,), 0.2)
        return ops.blocks(p["x"], parameters, dilations, next_slope, keep=keep, items=items, tf32=tf32)[0]

    def plain(p: Leaves) -> Tensor:
        x, skips = p["x"].transpose(2, 3), torch.zeros_like(p["x"]).transpose(2, 3)
        for i, dilation in enumerate(dilations):
            out, b = p["out"][i][..., None], p["bias"][i] if bias else None
            w = BlockWeights(
                Convolution(p["conv1d"][i][..., None]), p["slope_1"][i : i + 1], Norm(p["gamma_1"][i], p["beta_1"][i]),
                Convolution(p["taps"][i][:, :, None]), p["slope_2"][i : i + 1], Norm(p["gamma_2"][i], p["beta_2"][i]),
                Convolution(out[:, :width], None if b is None else b[:, :width]) if i < count - 1 else None,
                Convolution(out[:, width:], None if b is None else b[:, width:]),
            )  # fmt: skip
            residual, skip = oracle.block(x, w, dilation)
            skips = skips + skip
            x = x if residual is None else x + residual
        return skips.transpose(2, 3)

    name = f"blocks-{count}-{'bias' if bias else 'none'}-keep{keep}-{frames}"
    return MaskCase(name, tensors, fused, plain, frozenset({"x"}))


def generator_case(
    e1: int = 8, e2: int = 5, rows: tuple[int, ...] = (600, 7, 48), seed: int = 0, instruments: int = 4
) -> MaskCase:
    """A layer for each number of rows; the last layer's matrix is cut in two halves, stored apart."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (instruments, e1)}
    for i, count in enumerate(rows):
        shapes |= {f"a{i}": (e2, e1), f"bias{i}": (e2,), f"k{i}": (count, e2), f"offset{i}": (count,)}
    sections, first, place = [], 0, 0
    for i, count in enumerate(rows):
        for part in [count] if i < len(rows) - 1 else [count // 2, count - count // 2]:
            sections.append(Section(i, first, part, place, part + 3))
            first, place = first + part, place + instruments * (part + 3)

    def lists(p: Leaves) -> tuple[list[Tensor], ...]:
        return tuple([p[f"{kind}{i}"] for i in range(len(rows))] for kind in ("a", "bias", "k", "offset"))

    def fused(p: Leaves) -> Tensor:
        return ops.generated_parameters(p["embedding"], *lists(p), sections, place)

    def plain(p: Leaves) -> Tensor:
        a, bias, k, offset = lists(p)
        whole = [F.linear(F.linear(p["embedding"], a[i], bias[i]), k[i], offset[i]) for i in range(len(rows))]
        values = torch.cat(whole, dim=1)
        parts = [F.pad(values[:, s.first : s.first + s.rows], (0, s.stride - s.rows)).flatten() for s in sections]
        return torch.cat(parts)

    return MaskCase(f"generator-{e1}-{e2}", _drawn(seed, shapes), fused, plain, frozenset())


def all_cases(frames: int = 37, tf32: bool = False) -> list[MaskCase]:
    """Every operation with everything it can do, small."""
    return [
        in_conv_case(frames=frames, tf32=tf32),
        in_conv_case(n=1, frames=frames, second=0, tf32=tf32),
        in_conv_case(n=1, frames=frames, shared=False, first=24, second=16, outputs=40, tf32=tf32),
        mask_tail_case(frames=frames),
        mask_tail_case(frames=frames, channels=40),
        blocks_case(n=1, frames=frames, layers=1, stacks=2, keep=1, tf32=tf32),
        blocks_case(n=2, frames=frames, bias=True, keep=2, items=1, tf32=tf32),
        generator_case(),
    ]


def results(case: MaskCase, how: Callable[[Leaves], Tensor], dtype: torch.dtype, device: str = "cpu") -> Leaves:
    """The result and every gradient."""
    leaves = case.leaves(dtype, device)
    y = how(leaves)
    named = {f"gradient of {name}": value for name, value in gradients(leaves, [y]).items()}
    return {"y": y.detach(), **named}


def autocast_errors(case: MaskCase, device: str = "cpu") -> dict[str, float]:
    """How far PyTorch's own layers are from float64 under autocast to bfloat16: what the parity rule multiplies."""
    expected = results(case, case.plain, torch.float64)
    with torch.autocast(device, torch.bfloat16):
        found = results(case, case.plain, torch.float32, device)
    return {name: relative_error(value.cpu(), expected[name]) for name, value in found.items()}


def check(case: MaskCase, dtype: torch.dtype, device: str = "cpu", own: dict[str, float] | None = None) -> None:
    """As close to float64 as a few roundings; or as 1.5 times ``own``, PyTorch's errors in the same precision, if given.

    A slope's gradient is a sum of thousands of terms of both signs: it is allowed more, and in lower precisions is noise.
    """
    expected = results(case, case.plain, torch.float64)
    eager = own or {
        name: relative_error(value, expected[name]) for name, value in results(case, case.plain, torch.float32).items()
    }
    times, least = (5.0, 6e-6) if dtype == torch.float32 else (1.5, 0.0)
    for name, value in results(case, case.fused, dtype, device).items():
        few = value.numel() <= 4
        if few and own:
            continue
        assert_parity(
            f"{case.name}: {name}", value.cpu(), expected[name], max(3e-5 if few else least, times * eager[name])
        )
