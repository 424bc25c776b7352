"""`resample` is resampy's `kaiser_best`; a stream gives what the whole signal gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.audio import StreamingResampler, fit_length, resample, resampled_length
from metatasnet_fast.audio.resample import (
    CACHE_BYTES,
    KAISER_BETA,
    POINTS_PER_ZERO,
    ROLLOFF,
    ZEROS,
    _banks,
    filter_bank,
    kaiser_table,
)
from metatasnet_fast.errors import ShapeError

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 44101, 48000, 88200, 96000, 176400, 192000]
PAIRS = [
    (44100, 8000),
    (44100, 16000),
    (44100, 32000),
    (32000, 44100),
    (32000, 48000),
    (11025, 44100),
    (192000, 8000),
    (8000, 192000),
    (22050, 11025),
    (44101, 8000),
]


def noise(n: int, seed: int = 0, channels: int | None = None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = (n,) if channels is None else (channels, n)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def direct(x: np.ndarray, sr_in: int, sr_out: int) -> np.ndarray:
    """The formula, one output at a time, in float64: two wings of the interpolated table around t sr_in / sr_out."""
    z = np.linspace(0, ZEROS, ZEROS * POINTS_PER_ZERO + 1)
    table = ROLLOFF * np.sinc(ROLLOFF * z) * np.i0(KAISER_BETA * np.sqrt(1 - (z / ZEROS) ** 2)) / np.i0(KAISER_BETA)
    delta = np.diff(table, append=table[-1])
    gain = min(1.0, sr_out / sr_in)
    stride = int(gain * POINTS_PER_ZERO)

    def wing(frac: float, samples: np.ndarray) -> float:
        position = frac * gain * POINTS_PER_ZERO
        count = min(len(samples), (len(table) - int(position)) // stride)
        index = int(position) + stride * np.arange(count)
        eta = position - int(position)
        return float(gain * ((table[index] + eta * delta[index]) @ samples[:count]))

    y = np.zeros(len(x) * sr_out // sr_in)
    for t in range(len(y)):
        n, rest = divmod(t * sr_in, sr_out)
        frac = rest / sr_out
        y[t] = wing(frac, x[n::-1]) + wing(1 - frac, x[n + 1 :])
    return y


@pytest.mark.parametrize(("sr_in", "sr_out"), PAIRS)
def test_equals_the_formula_sample_by_sample(sr_in: int, sr_out: int) -> None:
    x = noise(max(1500, 1500 * sr_in // sr_out) if sr_out < 100000 else 200)
    expected = torch.from_numpy(direct(x.numpy(), sr_in, sr_out))
    y = resample(x, sr_in, sr_out)
    assert y.shape == expected.shape
    assert relative(y, expected) < 1e-9
    assert relative(resample(x.float(), sr_in, sr_out), expected) < 1e-6


@pytest.mark.parametrize(("sr_in", "sr_out"), PAIRS)
def test_equals_resampy(sr_in: int, sr_out: int) -> None:
    resampy = pytest.importorskip("resampy", reason="resampy is not installed")
    x = noise(sr_in // 2 + 17)
    expected = torch.from_numpy(resampy.resample(x.numpy(), sr_in, sr_out, filter="kaiser_best"))
    y = resample(x, sr_in, sr_out)
    assert y.shape == expected.shape
    assert relative(y, expected) < 1e-9
    assert relative(resample(x.float(), sr_in, sr_out), expected) < 1e-6


def test_the_filter_table_is_resampys_to_1e_12() -> None:
    filters = pytest.importorskip("resampy.filters", reason="resampy is not installed")
    stored, points, rolloff = filters.get_filter("kaiser_best")
    assert (int(points), float(rolloff)) == (POINTS_PER_ZERO, ROLLOFF)
    np.testing.assert_allclose(kaiser_table(), stored, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sr_in", "sr_out"), list(itertools.product(RATES, [8000, 32000, 44100])))
def test_a_tone_stays_a_tone(sr_in: int, sr_out: int) -> None:
    n = 4 * max(1, sr_in // 8000) * 400
    frequency, time = 997.0, torch.arange(n, dtype=torch.float64)
    y = resample(torch.sin(2 * torch.pi * frequency / sr_in * time), sr_in, sr_out)
    expected = torch.sin(2 * torch.pi * frequency / sr_out * torch.arange(len(y), dtype=torch.float64))
    inside = slice(len(y) // 4, -len(y) // 4)
    # The stride through the table is cut to whole points, which changes the gain a little: resampy does so too.
    stride = min(1.0, sr_out / sr_in) * POINTS_PER_ZERO
    assert relative(y[inside], expected[inside]) < stride / int(stride) - 1 + 1e-5


def test_length_is_the_rounded_down_one_unless_asked_otherwise() -> None:
    x = noise(44101)
    assert resample(x, 44100, 32000).shape == (32000,) == (resampled_length(44101, 44100, 32000),)
    longer, shorter = resample(x, 44100, 32000, length=32001), resample(x, 44100, 32000, length=31000)
    assert longer[-1] == 0
    assert torch.equal(longer[:-1], resample(x, 44100, 32000))
    assert torch.equal(shorter, longer[:31000])
    assert resample(x, 44100, 32000, length=0).shape == (0,)


def test_equal_rates_copy() -> None:
    x = noise(100, dtype=torch.float32)
    y = resample(x, 44100, 44100)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("sr_out", RATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silence_stays_exactly_zero(sr_out: int, dtype: torch.dtype) -> None:
    y = resample(torch.zeros(2, 3000, dtype=dtype), 44100, sr_out)
    assert y.shape == (2, 3000 * sr_out // 44100)
    assert y.dtype == dtype
    assert not y.any()


def test_one_sample_and_none() -> None:
    assert resample(torch.ones(2, 1), 44100, 8000).shape == (2, 0)
    assert resample(torch.ones(2, 1), 44100, 8000, length=1).tolist() == [[0.0], [0.0]]
    one = resample(torch.ones(1, dtype=torch.float64), 8000, 32000)
    np.testing.assert_allclose(one, kaiser_table()[: 4 * 2048 : 2048], rtol=1e-12)
    for sr_out in (8000, 44100, 96000):
        assert resample(torch.zeros(3, 0), 44100, sr_out).shape == (3, 0)
        assert resample(torch.zeros(0, 10), 44100, sr_out).shape == (0, 10 * sr_out // 44100)


def test_every_leading_shape_is_resampled_alike() -> None:
    x = noise(24 * 500).view(2, 3, 4, 500)
    y = resample(x, 16000, 11025)
    assert y.shape == (2, 3, 4, 500 * 11025 // 16000)
    assert relative(y[1, 2, 3], resample(x[1, 2, 3], 16000, 11025)) < 1e-14
    # Strides are the caller's business.
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(resample(turned, 16000, 11025), y)


def test_gradients_are_those_of_a_linear_map() -> None:
    x = noise(40).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: resample(v, 8000, 11025), (x,))


def test_a_bank_made_in_inference_mode_serves_training() -> None:
    _banks.clear()
    with torch.inference_mode():
        resample(torch.ones(100), 8000, 12345)
    x = torch.ones(100, requires_grad=True)
    resample(x, 8000, 12345).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_does_not_reach_the_samples(precision: str) -> None:
    x = noise(20000, dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        y = resample(x, 44100, 32000)
    finally:
        torch.set_float32_matmul_precision(before)
    assert y.dtype == torch.float32
    assert relative(y, resample(x.double(), 44100, 32000)) < 1e-6


def test_the_cache_is_bounded() -> None:
    for i in range(3):
        filter_bank(44100, 44101 + 2 * i, torch.float64, torch.device("cpu"))
    assert sum(bank.nbytes for bank in _banks.values()) <= CACHE_BYTES
    assert filter_bank(88200, 64000, torch.float32, torch.device("cpu")) is filter_bank(
        44100, 32000, torch.float32, torch.device("cpu")
    )


@pytest.mark.parametrize("rates", [(0, 8000), (8000, -1), (44100.5, 8000), (8000, 8000 * 1025)])
def test_impossible_rates_are_refused(rates: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="Hz"):
        resample(torch.zeros(10), *rates)
    with pytest.raises(ShapeError, match="Hz"):
        StreamingResampler(*rates, channels=1)


@pytest.mark.parametrize("x", [torch.zeros(10, dtype=torch.int16), torch.zeros(10).half(), torch.tensor(1.0)])
def test_other_signals_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        resample(x, 8000, 16000)


def test_fit_length_cuts_or_continues_with_zeros() -> None:
    x = torch.arange(1.0, 4.0)
    assert fit_length(x, 5).tolist() == [1, 2, 3, 0, 0]
    assert fit_length(x, 2).tolist() == [1, 2]
    assert fit_length(x, 3).tolist() == [1, 2, 3]
    assert fit_length(x, 0).tolist() == []
    with pytest.raises(ShapeError):
        fit_length(x, -1)


def streamed(x: torch.Tensor, sr_in: int, sr_out: int, cuts: list[int]) -> torch.Tensor:
    stream = StreamingResampler(sr_in, sr_out, channels=x.shape[0])
    borders = [0, *sorted(cuts), x.shape[1]]
    made = []
    for begin, end in itertools.pairwise(borders):
        block = x[:, begin:end].clone()
        made.append(stream.push(block))
        block.fill_(float("nan"))  # a reader may use its buffer again
    return torch.cat([*made, stream.finish()], -1)


@settings(max_examples=40, deadline=None)
@given(
    pair=st.sampled_from([*PAIRS[:7], (44100, 44100), (48000, 44100)]),
    channels=st.integers(1, 3),
    n=st.one_of(st.integers(0, 3000), st.integers(100_000, 200_000)),
    shares=st.lists(st.floats(0, 1), max_size=6),
)
def test_a_stream_equals_the_whole_signal_bit_for_bit(
    pair: tuple[int, int], channels: int, n: int, shares: list[float]
) -> None:
    x = noise(n, channels=channels, dtype=torch.float32)
    assert torch.equal(streamed(x, *pair, [int(n * s) for s in shares]), resample(x, *pair))


@settings(max_examples=20, deadline=None)
@given(sr_in=st.integers(1000, 9000), sr_out=st.integers(1000, 9000), n=st.integers(0, 20000))
def test_any_pair_of_rates_streams(sr_in: int, sr_out: int, n: int) -> None:
    x = noise(n, channels=1)
    cuts = list(range(0, n, 1777))
    y = streamed(x, sr_in, sr_out, cuts)
    assert y.shape == (1, n * sr_out // sr_in)
    assert torch.equal(y, resample(x, sr_in, sr_out))


def test_a_stream_holds_a_constant_amount() -> None:
    stream = StreamingResampler(44100, 32000, channels=2)
    held = []
    received = made = 0
    for _ in range(40):
        made += stream.push(torch.zeros(2, 22050)).shape[1]
        received += 22050
        held.append(sum(b.numel() for b in stream._blocks))
        assert received * 32000 // 44100 - made < 2**16 + 1000
    assert max(held) < 2 * (2**16 + 1000) * 44100 // 32000


def test_a_finished_stream_takes_no_more() -> None:
    stream = StreamingResampler(44100, 32000, channels=1)
    assert stream.finish().shape == (1, 0)
    for call in (stream.finish, lambda: stream.push(torch.zeros(1, 10))):
        with pytest.raises(RuntimeError, match="finished"):
            call()


def test_a_stream_refuses_other_blocks() -> None:
    stream = StreamingResampler(44100, 32000, channels=2)
    stream.push(torch.zeros(2, 10))
    for block in (torch.zeros(3, 10), torch.zeros(10), torch.zeros(2, 10, dtype=torch.float64)):
        with pytest.raises(ShapeError):
            stream.push(block)
