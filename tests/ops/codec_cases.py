"""Inputs and oracles for the codec's operations, for the reference arithmetic and for the kernels alike, on any device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.ops import bottleneck, codec, filter_bank, log_power, overlap_add
from metatasnet_fast.precision import Precision
from metatasnet_fast.reference import generator
from tests.support import Golden, allowed, assert_parity, half_a_unit_away, relative_error

Operation = Callable[[dict[str, Tensor]], Tensor]
STRIDE, PADDING = 5, 4


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, the same by PyTorch's layers, and the inputs of both, rounded to float32."""

    fused: Operation
    plain: Operation
    tensors: dict[str, Tensor]

    def leaves(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        return {k: v.detach().to(device, dtype, copy=True).requires_grad_() for k, v in self.tensors.items()}


def normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    return {k: torch.randn(shape, generator=r, dtype=torch.float64).float().double() for k, shape in shapes.items()}


def channels_first(how: Callable[..., Tensor], *arguments: Tensor, **options: object) -> Tensor:
    first, *others = arguments
    return how(first.transpose(1, 2), *others, **options).transpose(1, 2)


def bottleneck_case(n: int = 2, frames: int = 37, rows: int = 4, inputs: int = 24, outputs: int = 40) -> Case:
    tensors = normal(
        frames, x=(n, frames, inputs), weight=(outputs, inputs), bias=(outputs,), share=(n, rows, outputs)
    )  # fmt: skip

    def plain(p: dict[str, Tensor]) -> Tensor:
        y = channels_first(F.conv1d, p["x"], p["weight"][..., None], p["bias"])
        share = channels_first(F.interpolate, p["share"], size=frames, mode="linear", align_corners=True)
        return (y + share).relu()

    def fused(p: dict[str, Tensor]) -> Tensor:
        share = p["share"].to(torch.promote_types(p["x"].dtype, torch.float32))
        return bottleneck(p["x"], p["weight"], p["bias"], share=share, relu=True)

    return Case(fused, plain, tensors)


def middle(bank: Tensor, narrow: tuple[int, int]) -> Tensor:
    """A bank of whose first rows only some taps in the middle are not zero."""
    rows, taps = narrow
    end = (bank.shape[1] - taps) // 2
    return torch.cat([F.pad(bank[:rows, end : end + taps], (end, end)), bank[rows:]]) if rows else bank


def filter_bank_case(
    n: int = 2, samples: int = 61, taps: int = 13, outputs: int = 12, relu: bool = True, narrow: tuple[int, int] = (0, 0)
) -> Case:  # fmt: skip
    def plain(p: dict[str, Tensor]) -> Tensor:
        bank = middle(p["bank"], narrow)[:, None]
        y = F.conv1d(p["signal"][:, None], bank, stride=STRIDE, padding=PADDING).transpose(1, 2)
        return y.relu() if relu else y

    def fused(p: dict[str, Tensor]) -> Tensor:
        return filter_bank(p["signal"], middle(p["bank"], narrow), STRIDE, PADDING, narrow=narrow, relu=relu)

    return Case(fused, plain, normal(samples, signal=(n, samples), bank=(outputs, taps)))


def overlap_add_case(
    n: int = 2, frames: int = 19, taps: int = 13, channels: int = 12, narrow: tuple[int, int] = (0, 0)
) -> Case:  # fmt: skip
    def plain(p: dict[str, Tensor]) -> Tensor:
        x, bank = p["x"].transpose(1, 2), middle(p["bank"], narrow)[:, None]
        return F.conv_transpose1d(x, bank, stride=STRIDE, padding=PADDING)[:, 0]

    def fused(p: dict[str, Tensor]) -> Tensor:
        return overlap_add(p["x"], middle(p["bank"], narrow), STRIDE, PADDING, narrow=narrow)

    return Case(fused, plain, normal(frames, x=(n, frames, channels), bank=(channels, taps)))


def log_power_case(n: int = 2, samples: int = 70, n_fft: int = 32, hop: int = 8) -> Case:
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    mean = normal(1, mean=(n_fft // 2 + 1,))["mean"]

    def plain(p: dict[str, Tensor]) -> Tensor:
        x = p["signal"]
        stft = torch.stft(x, n_fft, hop, window=window.to(x), center=True, pad_mode="reflect", return_complex=True)
        return torch.log10(stft.real**2 + stft.imag**2 + 1e-8).transpose(1, 2) - mean.to(x)

    def fused(p: dict[str, Tensor]) -> Tensor:
        return log_power(p["signal"], window.to(p["signal"]), mean.to(p["signal"]), hop)

    return Case(fused, plain, normal(samples, signal=(n, samples)))


def results(how: Operation, leaves: dict[str, Tensor], given: Tensor | None = None, seed: int = 1) -> dict[str, Tensor]:
    """The result and the gradients of all leaves for a random (or the given) gradient, rounded to float32 in every dtype."""
    y = how(leaves)
    if given is None:
        r = torch.Generator().manual_seed(seed)
        given = torch.randn(y.shape, generator=r, dtype=torch.float64).float().to(y)
    found = torch.autograd.grad(y, list(leaves.values()), given)
    return {"y": y.detach(), **{f"gradient of {k}": v for k, v in zip(leaves, found, strict=True)}}


def rounding(case: Case, leaves: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """What float32 cannot tell apart: the largest error of PyTorch's layers in float32, and in float64 for inputs half a
    unit in the last place away. Near silence the slope of the logarithm is steep, and one draw of errors says little."""
    others = [results(case.plain, case.leaves(torch.float32))]
    others += [results(case.plain, half_a_unit_away(leaves, seed)) for seed in range(4)]
    return {k: max(relative_error(other[k], v) for other in others) for k, v in expected.items()}


def check(case: Case, dtype: torch.dtype = torch.float32, limit: float = 3e-6, device: str = "cpu") -> None:
    """Compare with PyTorch's layers in float64: within ``limit``, or three times :func:`rounding` where ``dtype`` is
    float32. In two bytes both sides get the rounded inputs, so that the ReLU lets the same frames pass."""
    ours = case.leaves(dtype, device)
    exact = {k: v.detach().double().cpu().requires_grad_() for k, v in ours.items()}
    expected = results(case.plain, exact)
    own = rounding(case, exact, expected) if dtype == torch.float32 else {}
    for name, value in results(case.fused, ours).items():
        assert value.isfinite().all()
        assert_parity(name, value.cpu(), expected[name], max(limit, 3 * own.get(name, 0.0)))


def codec_stage(recording: Golden) -> StageConfig:
    """The recorded codec's sizes."""
    meta = recording.meta
    scale = meta["sampling_rate"] // 8000
    config = MetaTasNetConfig(
        N=8, L=meta["kernel_size"] // scale, W=meta["stride"] // scale, filters=meta["filters"],
        num_mels=meta["num_mels"], stages_num=3,
    )  # fmt: skip
    return dataclasses.replace(config.stage(scale.bit_length() - 1), N=meta["N"])


def recorded_job(recording: Golden, job: str, precision: Precision, device: str = "cpu") -> None:
    """The recorded ``encoder`` or ``decoder``, forward and backward, by the fused operations; asserts parity."""
    stage, stored = codec_stage(recording), torch.promote_types(precision.storage, torch.float32)
    states = recording.under(f"{job}/state/")
    parameters = {f"{job}.{k}": v.to(device, stored, copy=True) for k, v in states.items()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.rsplit(".", 1)[-1] not in ("window", "mean", "std"))
    x = recording[f"{job}/x"].to(device, stored, copy=True).requires_grad_()
    if job == "encoder":
        weights = generator.encoder_weights(stage, parameters)
        y = codec.encode(codec.prepare_encoder(weights, stage, precision), x)
    else:
        y = codec.decode(codec.prepare_decoder(generator.decoder_weights(stage, parameters), stage, precision), x)
    y.backward(recording[f"{job}/grad_y"].to(y))

    def limit(key: str) -> float:
        return allowed(recording.name, precision.value, f"{job}/{key}")

    assert x.grad is not None
    assert_parity("y", y.detach().cpu(), recording[f"{job}/y"], limit("y"))
    assert_parity("grad_x", x.grad.cpu(), recording[f"{job}/grad_x"], limit("grad_x"))
    expected = recording.under(f"{job}/grad/")
    found = [parameters[f"{job}.{k}"].grad.cpu() for k in expected]  # type: ignore[union-attr]
    assert_parity("grad", found, list(expected.values()), limit("grad (all parameters)"))
    without = {k for k, p in parameters.items() if p.grad is None}
    assert without == {f"{job}.{k}" for k in states if k not in expected}


CASES: dict[str, Callable[..., Case]] = {
    "bottleneck": bottleneck_case,
    "filter bank": filter_bank_case,
    "overlap-add": overlap_add_case,
    "log power": log_power_case,
}
RECORDED: Sequence[tuple[str, str]] = [
    (name, job) for name in ("codec_8k", "codec_32k") for job in ("encoder", "decoder")
]
