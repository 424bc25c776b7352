"""Generate all parameters of a stage in one operation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .operator import differentiable, kernels, operator

__all__ = ["Section", "generated_parameters"]


class Section(NamedTuple):
    """A section of the result of :func:`generated_parameters`, where K is defined.

    The rows ``first`` to ``first + rows - 1`` of K make the section from the hidden values of ``layer``. In the result, the
    values of instrument ``i`` start at ``place + i * stride``.
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
    """Return w[place + i stride + r] = K[first + r] h[layer, i] + k[first + r], h[l, i] = A[l] e[i] + a[l], for every section.

    One launch computes all layers of a stage, and two launches compute the gradients. The operation is differentiable once, in
    all inputs. Elements outside all sections are zero.

    Args:
        embedding: e, (I, E_1) for I instruments. All inputs are float32; on a CPU also float64.
        bottlenecks: A, (E_2, E_1) for each layer.
        biases: a, (E_2,) for each layer.
        matrices: (rows, E_2) each. K is all matrices, one below the other.
        offsets: (rows,) each, in the same order. k is all offsets, one after the other.
        sections: the sections in the order of their layers, at least one for each layer.
        size: length of the result.

    Returns:
        w, (size,), of the embedding's dtype.

    Raises:
        ShapeError: if a shape or dtype does not fit, or a section lies outside of K or of the result.
        MissingDependencyError: on a CUDA device without Triton.
    """
    e2, e1 = bottlenecks[0].shape
    expected: dict[str, tuple[Sequence[Tensor], list[tuple[int, ...]]]] = {
        "embedding": ([embedding], [(len(embedding), e1)]),
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
    flat = list(_flat(tuple(sections), len(embedding), len(bottlenecks), sum(len(m) for m in matrices), size))
    made: Tensor = _generated(embedding, list(bottlenecks), list(biases), list(matrices), list(offsets), flat, size)
    return made


@functools.lru_cache(maxsize=64)
def _flat(sections: tuple[Section, ...], instruments: int, layers: int, rows: int, size: int) -> tuple[int, ...]:
    """Check that the sections are in order, and lie inside K and the result. Return the numbers of all of them in one tuple."""
    for s in sections:
        if s.first + s.rows > rows or s.place + (instruments - 1) * s.stride + s.rows > size or s.layer >= layers:
            raise ShapeError(f"{s} lies outside of {layers} layers, {rows} rows or {size} values.")
    order = [s.layer for s in sections]
    if order != sorted(order) or sorted(set(order)) != list(range(layers)):
        raise ShapeError("Sections must be in the order of their layers, at least one for each.")
    return tuple(value for section in sections for value in section)


@functools.lru_cache(maxsize=64)
def _tables(sections: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two tables for the kernels, on ``device``.

    The first, (programs, 5), holds layer, first row, number of rows, place and stride of each program. The second, (layers, 2),
    holds the first program of each layer and the program after its last.
    """
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


def _each(sections: Sequence[int]) -> zip[tuple[int, int, int, int, int]]:
    """Return an iterator over the sections: layer, first row, number of rows, place, stride between instruments."""
    return zip(*[iter(sections)] * 5, strict=True)


def _kernel(
    embedding: Tensor, bottlenecks: list[Tensor], biases: list[Tensor], matrices: list[Tensor], offsets: list[Tensor],
    sections: list[int], size: int,
) -> Tensor:  # fmt: skip
    w = embedding.new_zeros(size)
    table, _ = _tables(tuple(sections), embedding.device)
    kernels("generator", embedding.dtype).generator_forward(
        embedding.contiguous(), torch.stack(bottlenecks), torch.stack(biases), torch.cat(matrices), torch.cat(offsets),
        table, w,
    )  # fmt: skip
    return w


@operator("generated", _kernel)
def _generated(
    embedding: Tensor, bottlenecks: Sequence[Tensor], biases: Sequence[Tensor], matrices: Sequence[Tensor],
    offsets: Sequence[Tensor], sections: Sequence[int], size: int,
) -> Tensor:  # fmt: skip
    w, k, offset = embedding.new_zeros(size), torch.cat(list(matrices)), torch.cat(list(offsets))
    for layer, first, count, place, stride in _each(sections):
        hidden = F.linear(embedding, bottlenecks[layer], biases[layer])
        part = slice(first, first + count)
        w.as_strided((len(embedding), count), (stride, 1), place).copy_(F.linear(hidden, k[part], offset[part]))
    return w


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


@operator("generated_backward", _backward_kernel)
def _generated_backward(
    dw: Tensor, embedding: Tensor, bottlenecks: Sequence[Tensor], biases: Sequence[Tensor],
    matrices: Sequence[Tensor], sections: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the embedding (I, E_1), the bottlenecks (layers, E_2, E_1), the biases (layers, E_2), all
    matrices (rows, E_2) and all offsets (rows,)."""
    k, dw = torch.cat(list(matrices)), dw.contiguous()
    dk, doffset = torch.zeros_like(k), k.new_zeros(len(k))
    dhidden = k.new_zeros(len(bottlenecks), len(embedding), k.shape[1])
    for layer, first, count, place, stride in _each(sections):
        hidden = F.linear(embedding, bottlenecks[layer], biases[layer])
        given, part = dw.as_strided((len(embedding), count), (stride, 1), place), slice(first, first + count)
        dk[part], doffset[part] = given.T @ hidden, given.sum(0)
        dhidden[layer] += given @ k[part]
    dembedding = torch.einsum("lij,lje->ie", dhidden, torch.stack(list(bottlenecks)))
    return dembedding, torch.einsum("lij,ie->lje", dhidden, embedding), dhidden.sum(1), dk, doffset


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    embedding, bottlenecks, biases, matrices, _, ctx.sections, _ = inputs
    ctx.save_for_backward(embedding, *bottlenecks, *biases, *matrices)
    ctx.layers = len(bottlenecks)


def _differentiate(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
    embedding, *saved = ctx.saved_tensors
    bottlenecks, saved = saved[: ctx.layers], saved[ctx.layers :]
    biases, matrices = saved[: ctx.layers], saved[ctx.layers :]
    de, da, dbias, dk, dk_bias = _generated_backward(dw, embedding, bottlenecks, biases, matrices, ctx.sections)
    rows = [len(m) for m in matrices]
    return (
        de, list(da.unbind(0)), list(dbias.unbind(0)), list(dk.split(rows)), list(dk_bias.split(rows)), None, None,
    )  # fmt: skip


differentiable(_generated, _differentiate, _save, _generated_backward)
