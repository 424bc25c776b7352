"""The losses of a stage with their intermediate values, and their gradients: see :mod:`.losses` for what they mean.

Signals are (n, signals, T), latents (n, 4, frames, N), ``mask`` (n, 4). Sums are taken in :func:`wide`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .losses import EPSILON, si_sdr, stage_loss
from .statistics import wide

__all__ = ["backward", "forward"]

Pair = tuple[Tensor, Tensor]


def _rows(estimate: Tensor, target: Tensor) -> Tensor:
    """(sdr, a, factor of the target, factor of the residual) of every signal: (n, signals, 4)."""
    e, s = estimate.to(wide(estimate.dtype)), target.to(wide(estimate.dtype))
    power = s.square().sum(-1)
    a = (s * e).sum(-1) / (power + EPSILON)
    projection, residual = a.square() * power, (e - a[..., None] * s).square().sum(-1)
    tens = 20 / math.log(10)
    r = torch.where(residual >= EPSILON, -tens / residual.clamp(min=EPSILON), 0)
    p = tens * a * power / (projection.clamp(min=EPSILON) * (power + EPSILON))
    p = torch.where(projection >= EPSILON, p, 0)
    return torch.stack([si_sdr(e, s), a, p - r * a * EPSILON / (power + EPSILON), r], dim=-1)


def _cosines(latents: Tensor) -> Tensor:
    """(norm, products with the instruments 1 and 2 further and with the item before): (n, frames, 4, 4)."""
    x = latents.to(wide(latents.dtype))
    others = [(x * x.roll(-k, 1)).abs() for k in (1, 2)] + [x * x.roll(1, 0)]
    return torch.stack([x.norm(dim=-1)] + [v.sum(-1) for v in others], dim=-1).transpose(1, 2)


def forward(
    sources: Pair, mix: Pair | None, mask: Tensor, latents: Tensor | None,
    similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Loss (), statistics (7,), rows (n, 5, 4), cosines (n, frames, 4, 4), and what each sdr and cosine weighs, (7,)."""
    dtype = wide(sources[0].dtype)
    mask = mask.to(dtype)
    rows = torch.cat([_rows(*sources), _rows(*(mix or (p[:, :1] for p in sources)))], dim=1)
    e, s = (p.to(dtype)[:, :, None] for p in sources)
    m_e, m_s = (p.to(dtype) for p in mix) if mix else (None, s[:, 0])
    x = None if latents is None else latents.to(dtype)
    loss, stats = stage_loss(e, s, mask[..., None], x, m_e, m_s, similarity, dissimilarity, reconstruction)
    scales = stats.new_zeros(7)
    scales[:4] = -1 / mask.sum(0).clamp(min=EPSILON)
    scales[4] = -max(reconstruction, 0) / len(mask)
    if x is not None:
        pairs = (mask.sum(1).square() - mask.square().sum(1)).sum() / 2
        neighbours = (mask * mask.roll(1, 0)).sum().clamp(min=EPSILON)
        scales[5] = max(dissimilarity, 0) / (pairs + EPSILON) / x.shape[2]
        scales[6] = -max(similarity, 0) / neighbours / x.shape[2]
    return loss, stats, rows, None if x is None else _cosines(x), scales


def _sdr_backward(weight: Tensor, rows: Tensor, pair: Pair) -> Tensor:
    e, s = (p.to(rows.dtype) for p in pair)
    a, on_target, on_residual = rows[..., 1:2], rows[..., 2:3], rows[..., 3:4]
    return (weight[..., None] * (on_target * s + on_residual * (e - a * s))).to(pair[0].dtype)


def _cosine_backward(pairs: Tensor, items: Tensor, latents: Tensor, mask: Tensor, saved: Tensor) -> Tensor:
    x, sounds = latents.to(saved.dtype), mask != 0
    norm, near, far, along = saved.transpose(1, 2).unbind(-1)
    floor = norm.clamp(min=EPSILON)

    def neighbour(shifts: int, dim: int, product: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        both = scale * (sounds & sounds.roll(shifts, dim)).to(x.dtype)[..., None]
        weight = both / floor.roll(shifts, dim)
        return (weight / floor)[..., None], weight * product

    found = [neighbour(-k, 1, product, pairs) for k, product in ((1, near), (2, far), (3, near.roll(-3, 1)))]
    before, after = neighbour(1, 0, along, items), neighbour(-1, 0, along.roll(-1, 0), items)
    share = torch.stack([b for _, b in (*found, before, after)]).sum(0)
    own = torch.where(norm > 0, share / (floor.square() * norm.clamp(min=1e-30)), 0)[..., None]
    pull = sum(a * x.roll(-k, 1).abs() for k, (a, _) in enumerate(found, 1))
    dx = x.sign() * pull + before[0] * x.roll(1, 0) + after[0] * x.roll(-1, 0) - own * x
    return dx.to(latents.dtype)


def backward(
    dloss: Tensor, sources: Pair, mix: Pair | None, mask: Tensor, latents: Tensor | None,
    rows: Tensor, saved: Tensor | None, scales: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the sources' estimates, of the mix's estimate and of the latents, from what :func:`forward` kept."""
    scales = scales * dloss.to(scales.dtype)
    on_mix, dlatents = None, None
    if mix is not None:
        on_mix = _sdr_backward(scales[4].expand(len(mask), 1), rows[:, 4:], mix)
    if latents is not None and saved is not None:
        dlatents = _cosine_backward(scales[5], scales[6], latents, mask, saved)
    return _sdr_backward(scales[:4] * mask.to(rows.dtype), rows[:, :4], sources), on_mix, dlatents
