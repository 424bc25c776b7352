"""Generate all parameters of a stage in one launch, from the instruments' embeddings to every layer's weights; and backward.

    h[l, i, :] = A[l] e[i] + a[l]                                          layer l, instrument i
    w[place(r) + i stride(r)] = sum_j K[r, j] h[l(r), i, j] + k[r]         row r of the kernels of all layers, one after another
    backward: dK[r, j] = sum_i dw[r, i] h[l, i, j];  dk[r] = sum_i dw[r, i];  dh[l, i, j] = sum_r dw[r, i] K[r, j]
              dA[l] = sum_i dh[l, i] e[i]^T;  da[l] = sum_i dh[l, i];         de[i] = sum_l A[l]^T dh[l, i]

Each program reads one line of a table: layer, first row, number of rows, place and stride of its results. So each kind of
weight is written in the layout in which it is used. Partial sums over rows are merged for each layer, in order.

Bytes, with R rows: (E_2 + 1 + I) 4 R forward, (2 E_2 + 2 + I) 4 R backward. At the authors' sizes R is 2.2 million in the third
stage, so forward moves 88 MB: 20 us at 4.3 TB/s (predicted). One linear map for each layer would take 228 launches and more.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.2; original model/conv1d.py and model/group_norm.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, power_of_two

__all__ = [
    "ROWS", "generator_backward", "generator_bwd_kernel", "generator_finish_kernel", "generator_forward",
    "generator_fwd_kernel",
]  # fmt: skip

ROWS = 512
"""Largest number of rows that one program computes."""
LINES = 64  # partial sums that are merged at a time


@triton.jit
def _hidden(
    p_e, p_a, p_bias, i_l, i_i, E1: tl.constexpr, E2: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr
):
    """Return h[l, i] of layer ``i_l`` and instrument ``i_i``, BLOCK_2 values in float32; those past E_2 are zero."""
    i_1, i_2 = tl.arange(0, BLOCK_1), tl.arange(0, BLOCK_2)
    i_a = (i_l * E2 + i_2)[:, None] * E1 + i_1[None, :]
    b_a = tl.load(p_a + i_a, mask=(i_2 < E2)[:, None] & (i_1 < E1)[None, :], other=0.0)
    b_e = tl.load(p_e + i_i * E1 + i_1, mask=i_1 < E1, other=0.0)
    return tl.sum(b_a * b_e[None, :], 1) + tl.load(p_bias + i_l * E2 + i_2, mask=i_2 < E2, other=0.0)


@triton.jit
def generator_fwd_kernel(
    p_e, p_a, p_bias, p_k, p_k_bias, p_table, p_w, INSTRUMENTS: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write w of up to BLOCK_R rows of one layer, for all instruments."""
    p_table += tl.program_id(0).to(tl.int64) * 5
    i_l, first, rows = tl.load(p_table), tl.load(p_table + 1), tl.load(p_table + 2)
    place, stride = tl.load(p_table + 3), tl.load(p_table + 4)
    i_r, i_2 = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_2)
    m_r = i_r < rows
    b_k = tl.load(p_k + (first + i_r)[:, None] * E2 + i_2[None, :], mask=m_r[:, None] & (i_2 < E2)[None, :], other=0.0)
    b_bias = tl.load(p_k_bias + first + i_r, mask=m_r, other=0.0)
    for i_i in tl.static_range(INSTRUMENTS):
        b_h = _hidden(p_e, p_a, p_bias, i_l, i_i, E1, E2, BLOCK_1, BLOCK_2)
        tl.store(p_w + place + i_i * stride + i_r, tl.sum(b_k * b_h[None, :], 1) + b_bias, mask=m_r)


@triton.jit
def generator_bwd_kernel(
    p_e, p_a, p_bias, p_k, p_table, p_dw, p_dk, p_dk_bias, p_dh, INSTRUMENTS: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Compute dK and dk of this program's rows, and the sum of dh over these rows: a row of ``p_dh`` (programs, I, BLOCK_2)."""
    p_table += tl.program_id(0).to(tl.int64) * 5
    i_l, first, rows = tl.load(p_table), tl.load(p_table + 1), tl.load(p_table + 2)
    place, stride = tl.load(p_table + 3), tl.load(p_table + 4)
    i_r, i_2 = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_2)
    m_r = i_r < rows
    i_k, mask = (first + i_r)[:, None] * E2 + i_2[None, :], m_r[:, None] & (i_2 < E2)[None, :]
    b_k = tl.load(p_k + i_k, mask=mask, other=0.0)
    b_dk = tl.zeros([BLOCK_R, BLOCK_2], tl.float32)
    b_dk_bias = tl.zeros([BLOCK_R], tl.float32)
    p_dh += tl.program_id(0).to(tl.int64) * INSTRUMENTS * BLOCK_2 + i_2
    for i_i in tl.static_range(INSTRUMENTS):
        b_h = _hidden(p_e, p_a, p_bias, i_l, i_i, E1, E2, BLOCK_1, BLOCK_2)
        b_dw = tl.load(p_dw + place + i_i * stride + i_r, mask=m_r, other=0.0)
        b_dk += b_dw[:, None] * b_h[None, :]
        b_dk_bias += b_dw
        tl.store(p_dh + i_i * BLOCK_2, tl.sum(b_dw[:, None] * b_k, 0))
    tl.store(p_dk + i_k, b_dk, mask=mask)
    tl.store(p_dk_bias + first + i_r, b_dk_bias, mask=m_r)


@triton.jit
def generator_finish_kernel(
    p_e, p_a, p_dh, p_programs, p_da, p_dbias, p_de, INSTRUMENTS: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Compute dA and da of one layer, and its term of de, a row of ``p_de`` (layers, I, E1).

    ``p_programs`` names the layer's first program and the one after its last; the partial sums of these are added up.
    """
    i_l = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(p_programs + i_l * 2), tl.load(p_programs + i_l * 2 + 1)
    i_1, i_2 = tl.arange(0, BLOCK_1), tl.arange(0, BLOCK_2)
    mask = (i_2 < E2)[:, None] & (i_1 < E1)[None, :]
    i_a = (i_l * E2 + i_2)[:, None] * E1 + i_1[None, :]
    b_a = tl.load(p_a + i_a, mask=mask, other=0.0)
    b_da = tl.zeros([BLOCK_2, BLOCK_1], tl.float32)
    b_dbias = tl.zeros([BLOCK_2], tl.float32)
    for i_i in tl.static_range(INSTRUMENTS):
        b_dh = tl.zeros([BLOCK_2], tl.float32)
        for line in range(begin, end, LINES):
            i_p = line + tl.arange(0, LINES)
            p_line = p_dh + (i_p.to(tl.int64) * INSTRUMENTS + i_i)[:, None] * BLOCK_2 + i_2[None, :]
            b_dh += tl.sum(tl.load(p_line, mask=(i_p < end)[:, None], other=0.0), 0)
        b_e = tl.load(p_e + i_i * E1 + i_1, mask=i_1 < E1, other=0.0)
        b_da += b_dh[:, None] * b_e[None, :]
        b_dbias += b_dh
        tl.store(p_de + (i_l * INSTRUMENTS + i_i) * E1 + i_1, tl.sum(b_a * b_dh[:, None], 0), mask=i_1 < E1)
    tl.store(p_da + i_a, b_da, mask=mask)
    tl.store(p_dbias + i_l * E2 + i_2, b_dbias, mask=i_2 < E2)


def _sizes(e: Tensor, a: Tensor) -> dict[str, int]:
    e1, e2 = e.shape[1], a.shape[1]
    return {"INSTRUMENTS": len(e), "E1": e1, "E2": e2, "BLOCK_1": power_of_two(e1, 1), "BLOCK_2": power_of_two(e2, 1)}


def generator_forward(e: Tensor, a: Tensor, bias: Tensor, k: Tensor, k_bias: Tensor, table: Tensor, w: Tensor) -> None:
    """Write all generated weights into ``w``, a flat tensor.

    All tensors are float32: e (I, E_1); a (layers, E_2, E_1) and bias (layers, E_2), the A and a of the layers; k (rows, E_2)
    and k_bias (rows,), the K and k of all rows. ``table`` (programs, 5) holds the lines that the programs read.
    """
    launch(
        generator_fwd_kernel, len(table), e,
        p_e=e, p_a=a, p_bias=bias, p_k=k, p_k_bias=k_bias, p_table=table, p_w=w, **_sizes(e, a), BLOCK_R=ROWS, num_warps=4,
    )  # fmt: skip


def generator_backward(
    dw: Tensor, e: Tensor, a: Tensor, bias: Tensor, k: Tensor, table: Tensor, programs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of e, a, bias, k and k_bias of :func:`generator_forward`, float32.

    ``programs`` (layers, 2) holds the first program of each layer and the program after its last.
    """
    sizes = _sizes(e, a)
    dk, dk_bias = torch.empty_like(k), torch.empty(len(k), dtype=torch.float32, device=k.device)
    dh = torch.empty(len(table), len(e), sizes["BLOCK_2"], dtype=torch.float32, device=k.device)
    launch(
        generator_bwd_kernel, len(table), e,
        p_e=e, p_a=a, p_bias=bias, p_k=k, p_table=table, p_dw=dw, p_dk=dk, p_dk_bias=dk_bias, p_dh=dh, **sizes,
        BLOCK_R=ROWS, num_warps=4,
    )  # fmt: skip
    da, dbias = torch.empty_like(a), torch.empty_like(bias)
    de = torch.empty(len(a), *e.shape, dtype=torch.float32, device=e.device)
    launch(
        generator_finish_kernel, len(a), e,
        p_e=e, p_a=a, p_dh=dh, p_programs=programs, p_da=da, p_dbias=dbias, p_de=de, **sizes, LINES=LINES, num_warps=1,
    )  # fmt: skip
    return de.sum(0), da, dbias, dk, dk_bias
