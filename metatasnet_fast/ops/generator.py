"""All generated parameters of a stage in one job."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import generator as plain
from .library import LIBRARY, NAMESPACE, kernels, register, register_once_differentiable

__all__ = ["Section", "generated_parameters"]


class Section(NamedTuple):
    """Rows ``first`` to ``first + rows`` of all kernels together, made from the hidden values of ``layer``.

    The values of instrument ``i`` are stored from ``place + i * stride`` on.
    """

    layer: int
    first: int
    rows: int
    place: int
    stride: int


def generated_parameters(
    embedding: Tensor,
    bottlenecks: Sequence[Tensor],
    biases: Sequence[Tensor],
    matrices: Sequence[Tensor],
    offsets: Sequence[Tensor],
    sections: Sequence[Section],
    size: int,
) -> Tensor:
    """w[place + i stride + r] = K[first + r] h[layer, i] + k[first + r] with h[l, i] = A[l] e[i] + a[l], for every section.

    One launch for all layers of a stage, two for the gradients. Differentiable once, in everything. What no section covers
    is zero.

    Args:
        embedding: (4, E_1), float32; on a CPU also float64, and so for all others.
        bottlenecks: A, (E_2, E_1) for each layer.
        biases: a, (E_2,) for each layer.
        matrices: (rows, E_2) each; K is all of them, one below the other.
        offsets: (rows,) each, likewise k.
        sections: in the order of their layers; a layer may have several, and every layer has one.
        size: length of the result.

    Returns:
        (size,), of the embedding's dtype.

    Raises:
        ShapeError: if a shape or dtype does not fit, or a section lies outside of K or of the result.
        MissingDependencyError: on a CUDA device without Triton.
    """
    e2, e1 = bottlenecks[0].shape
    expected: dict[str, tuple[Sequence[Tensor], list[tuple[int, ...]]]] = {
        "embedding": ([embedding], [(4, e1)]),
        "bottlenecks": (bottlenecks, [(e2, e1)] * len(bottlenecks)),
        "biases": (biases, [(e2,)] * len(bottlenecks)),
        "matrices": (matrices, [(len(m), e2) for m in matrices]),
        "offsets": (offsets, [(len(m),) for m in matrices]),
    }
    for name, (tensors, shapes) in expected.items():
        found = [tuple(t.shape) for t in tensors]
        if found != shapes or any(t.dtype != embedding.dtype or t.device != embedding.device for t in tensors):
            raise ShapeError(
                f"{name} must be {embedding.dtype} on {embedding.device} of shapes {shapes[:3]}..., got {found[:3]}..."
            )
    flat = list(_flat(tuple(sections), len(bottlenecks), sum(len(m) for m in matrices), size))
    made: Tensor = _generated(embedding, list(bottlenecks), list(biases), list(matrices), list(offsets), flat, size)
    return made


@functools.lru_cache(maxsize=64)
def _flat(sections: tuple[Section, ...], layers: int, rows: int, size: int) -> tuple[int, ...]:
    """The sections' numbers one after another, once they are found to be in order."""
    for s in sections:
        if s.first + s.rows > rows or s.place + 3 * s.stride + s.rows > size or s.layer >= layers:
            raise ShapeError(f"{s} lies outside of {layers} layers, {rows} rows or {size} values.")
    order = [s.layer for s in sections]
    if order != sorted(order) or sorted(set(order)) != list(range(layers)):
        raise ShapeError("Sections must be in the order of their layers, at least one for each.")
    return tuple(value for section in sections for value in section)


@functools.lru_cache(maxsize=64)
def _tables(sections: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What each program does, and the programs of each layer, for the kernels."""
    rows_of_a_program = kernels("generator", torch.float32).ROWS
    lines: list[tuple[int, ...]] = []
    programs: dict[int, list[int]] = {}
    for at in range(0, len(sections), 5):
        layer, first, rows, place, stride = sections[at : at + 5]
        for start in range(0, rows, rows_of_a_program):
            programs.setdefault(layer, [len(lines), 0])[1] = len(lines) + 1
            lines.append((layer, first + start, min(rows_of_a_program, rows - start), place + start, stride))
    ranges = [programs[layer] for layer in sorted(programs)]
    return torch.tensor(lines, device=device), torch.tensor(ranges, dtype=torch.int32, device=device)


def _forward_kernel(
    embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor], offsets: list[Tensor],
    sections: list[int], size: int,
) -> Tensor:  # fmt: skip
    launcher = kernels("generator", embedding.dtype)
    w = embedding.new_zeros(size)
    table, _ = _tables(tuple(sections), embedding.device)
    launcher.generator_forward(
        embedding.contiguous(), torch.stack(bottlenecks), torch.stack(biases), torch.cat(matrices), torch.cat(offsets),
        table, w,
    )  # fmt: skip
    return w


def _forward_reference(
    embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor], offsets: list[Tensor],
    sections: list[int], size: int,
) -> Tensor:  # fmt: skip
    return plain.rows(embedding, bottlenecks, biases, torch.cat(matrices), torch.cat(offsets), sections, size)


def _forward_fake(
    embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor], offsets: list[Tensor],
    sections: list[int], size: int,
) -> Tensor:  # fmt: skip
    return embedding.new_empty(size)


def _backward_kernel(
    dw: Tensor, embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor],
    sections: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    table, programs = _tables(tuple(sections), embedding.device)
    found: tuple[Tensor, ...] = kernels("generator", embedding.dtype).generator_backward(
        dw.contiguous(), embedding.contiguous(), torch.stack(bottlenecks), torch.stack(biases), torch.cat(matrices),
        table, programs,
    )  # fmt: skip
    return found


def _backward_reference(
    dw: Tensor, embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor],
    sections: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    return plain.rows_backward(dw.contiguous(), embedding, bottlenecks, biases, torch.cat(matrices), sections)


def _backward_fake(
    dw: Tensor, embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor],
    sections: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    layers, rows = len(bottlenecks), sum(len(m) for m in matrices)
    return (
        dw.new_empty(embedding.shape), dw.new_empty(layers, *bottlenecks[0].shape), dw.new_empty(layers, *biases[0].shape),
        dw.new_empty(rows, matrices[0].shape[1]), dw.new_empty(rows),
    )  # fmt: skip


_generated = register(
    "generated(Tensor embedding, Tensor[] bottlenecks, Tensor[] biases, Tensor[] matrices, Tensor[] offsets, "
    "int[] sections, int size) -> Tensor",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_generated_backward = register(
    "generated_backward(Tensor dw, Tensor embedding, Tensor[] bottlenecks, Tensor[] biases, Tensor[] matrices, "
    "int[] sections) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    embedding, bottlenecks, biases, matrices, _, sections, _ = inputs
    ctx.save_for_backward(embedding, *bottlenecks, *biases, *matrices)
    ctx.layers, ctx.sections = len(bottlenecks), sections


def _differentiate(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
    embedding, *saved = ctx.saved_tensors
    bottlenecks, saved = saved[: ctx.layers], saved[ctx.layers :]
    biases, matrices = saved[: ctx.layers], saved[ctx.layers :]
    de, da, dbias, dk, dk_bias = _generated_backward(dw, embedding, bottlenecks, biases, matrices, ctx.sections)
    rows = [len(m) for m in matrices]
    return (
        de, list(da.unbind(0)), list(dbias.unbind(0)), list(dk.split(rows)), list(dk_bias.split(rows)), None, None,
    )  # fmt: skip


torch.library.register_autograd(f"{NAMESPACE}::generated", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("generated_backward")
