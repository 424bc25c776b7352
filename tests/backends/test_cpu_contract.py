"""What the backend ``cpu`` promises its callers: shapes, strides, refusals, and what it does not call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metatasnet_fast import native
from metatasnet_fast.backends.base import Request
from metatasnet_fast.backends.cpu import ISA_VARIABLE
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import BackendUnavailableError, ShapeError
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import (
    CPU,
    PRECISIONS,
    REFERENCE,
    needs_the_module,
    noise,
    prepare,
    recipe,
    separate,
    stage_parameters,
)
from tests.support import FLOOR, TINY, relative_error

STAGE = TINY.stage(1)


@pytest.fixture(scope="module")
def prepared() -> Any:
    return prepare(CPU, STAGE, stage_parameters(recipe(TINY), 1))


@needs_the_module
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_empty_batch_gives_empty_results(precision: Precision) -> None:
    found = separate(CPU, TINY, recipe(TINY), noise(TINY, 0, 1000), precision)
    expected = separate(REFERENCE, TINY, recipe(TINY), noise(TINY, 0, 1000))
    assert [f.shape for f in found] == [e.shape for e in expected]


@needs_the_module
def test_strides_and_dtypes_of_the_inputs_change_no_bit(prepared: Any) -> None:
    latent, partial = torch.randn(2, STAGE.N, 50), torch.randn(2, 4, STAGE.N // 2, 50)
    expected = CPU.mask(prepared, latent, partial)
    other_latents = {
        "channels last": latent.transpose(1, 2).contiguous().transpose(1, 2),
        "part of a larger tensor": torch.randn(5, STAGE.N + 3, 77)[::2, 2:-1, 9:59].copy_(latent[[0, 1, 0]])[:2],
        "wider": latent.double(),
    }
    for what, other in other_latents.items():
        assert torch.equal(CPU.mask(prepared, other, partial), expected), what
        assert torch.equal(CPU.decode(prepared, other), CPU.decode(prepared, latent)), what
    expanded = latent[:1].expand(2, -1, -1)
    assert torch.equal(CPU.mask(prepared, expanded, partial), CPU.mask(prepared, expanded.contiguous(), partial))
    shared = partial[:, :1].expand(-1, 4, -1, -1)
    assert torch.equal(CPU.mask(prepared, latent, shared), CPU.mask(prepared, latent, shared.contiguous()))


@needs_the_module
def test_one_level_for_all_channels_is_as_good_as_any_other_latent(prepared: Any) -> None:
    level = torch.randn(1, 1, 40)
    expanded = level.expand(1, STAGE.N, 40)
    assert torch.equal(CPU.decode(prepared, expanded), CPU.decode(prepared, expanded.contiguous()))


@needs_the_module
def test_bfloat16_latents_are_read_as_they_are(prepared: Any) -> None:
    latent, partial = torch.randn(1, STAGE.N, 50).bfloat16(), torch.randn(1, 4, STAGE.N // 2, 50).bfloat16()
    assert torch.equal(CPU.mask(prepared, latent, partial), CPU.mask(prepared, latent.float(), partial.float()))


@needs_the_module
def test_jobs_hand_over_without_copies() -> None:
    """Latents are stored frames by channels, and read like that."""
    prepared = prepare(CPU, TINY.stage(0), stage_parameters(recipe(TINY), 0))
    latent = CPU.encode(prepared, noise(TINY, 2, 1000)[0])
    masked = CPU.mask(prepared, latent, None)
    assert latent.stride(1) == masked.stride(2) == masked.flatten(0, 1).stride(1) == 1
    assert masked.flatten(0, 1).data_ptr() == masked.data_ptr()


@needs_the_module
def test_dropout_acts_on_the_networks_copies_only(prepared: Any) -> None:
    latent, partial = torch.randn(2, STAGE.N, 50), torch.randn(2, 4, STAGE.N // 2, 50)
    dropout = torch.bernoulli(torch.full((2, 4, STAGE.N), 0.5)) * 2
    eager = prepare(REFERENCE, STAGE, stage_parameters(recipe(TINY), 1))
    expected = REFERENCE.mask(eager, latent, partial, dropout)
    assert relative_error(CPU.mask(prepared, latent, partial, dropout), expected) < 3 * FLOOR


@needs_the_module
def test_prepared_weights_do_not_follow_the_parameters() -> None:
    parameters = {k: v.clone() for k, v in stage_parameters(recipe(TINY), 0).items()}
    prepared = prepare(CPU, TINY.stage(0), parameters)
    mix = noise(TINY, 1, 1000)[0]
    before = CPU.mask(prepared, CPU.encode(prepared, mix), None)
    for value in parameters.values():
        value.fill_(0.5)
    assert torch.equal(CPU.mask(prepared, CPU.encode(prepared, mix), None), before)


class Recorder(TorchDispatchMode):
    """Names of the operators that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@needs_the_module
@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_computes_nothing_but_the_spectrogram(precision: Precision) -> None:
    mixes = noise(TINY, 1, 2000)
    stages = [prepare(CPU, TINY.stage(s), stage_parameters(recipe(TINY), s), precision) for s in range(3)]
    with Recorder() as recorder:
        masked = None
        for stage, mix in zip(stages, mixes, strict=True):
            masked = CPU.mask(stage, CPU.encode(stage, mix), masked)
            CPU.decode(stage, masked.flatten(0, 1))
    assert "_fft_r2c" in recorder.names
    forbidden = ("conv", "norm", "prelu", "relu", "softmax", "interpolate", "upsample", "cat", "clone", "contiguous")
    assert not [name for name in recorder.names if any(word in name for word in forbidden)]


@needs_the_module
def test_wrong_shapes_are_refused(prepared: Any) -> None:
    latent, partial = torch.randn(1, STAGE.N, 50), torch.randn(1, 4, STAGE.N // 2, 50)
    with pytest.raises(ShapeError, match="partial"):
        CPU.mask(prepared, latent, None)
    with pytest.raises(ShapeError, match="partial"):
        CPU.mask(prepared, latent, partial[..., 1:])
    with pytest.raises(ShapeError, match="latent"):
        CPU.mask(prepared, latent[:, 1:], partial)
    with pytest.raises(ShapeError, match="latent"):
        CPU.decode(prepared, latent[0])
    with pytest.raises(ShapeError, match="signal"):
        CPU.encode(prepared, torch.randn(1, 2, 4000))
    with pytest.raises(ShapeError, match="too few"):
        CPU.encode(prepared, torch.randn(1, 1, STAGE.n_fft // 2))


@needs_the_module
def test_the_compiled_module_checks_what_it_is_given(prepared: Any) -> None:
    stage, good = prepared.stage, torch.zeros(1, 50, STAGE.N)
    with pytest.raises(ValueError, match="latent must have shape"):
        stage.decode(good[..., 1:], torch.zeros(1, 50 * STAGE.W), None, 1)
    with pytest.raises(ValueError, match="signal must have shape"):
        stage.decode(good, torch.zeros(1, 50), None, 1)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        stage.decode(good.double(), torch.zeros(1, 50 * STAGE.W), None, 1)
    with pytest.raises(ValueError, match="contiguous channels"):
        stage.decode(torch.zeros(1, STAGE.N, 50).transpose(1, 2), torch.zeros(1, 50 * STAGE.W), None, 1)
    with pytest.raises(ValueError, match="contiguous"):
        stage.decode(good, torch.zeros(1, 100 * STAGE.W)[:, ::2], None, 1)
    with pytest.raises(ValueError, match="threads"):
        stage.decode(good, torch.zeros(1, 50 * STAGE.W), None, 0)
    with pytest.raises(ValueError, match="lack"):
        native.load().CpuStage("", False, {**_sizes(), "N": 16}, {})
    with pytest.raises(ValueError, match="multiples of 8"):
        native.load().CpuStage("", False, {**_sizes(), "N": 12}, {})
    with pytest.raises(ValueError, match="1 to 32 instruments"):
        native.load().CpuStage("", False, {**_sizes(), "instruments": 33}, {})
    with pytest.raises(ValueError, match="0 to all instruments"):
        native.load().CpuStage("", False, {**_sizes(), "softmax": 5}, {})
    with pytest.raises(ValueError, match="magic"):
        native.load().CpuStage("magic", False, _sizes(), {})


def _sizes() -> dict[str, Any]:
    return {
        "instruments": 4,
        "softmax": 4,
        "N": 16,
        "W": 20,
        "B": 8,
        "H": 8,
        "partial": 0,
        "kernel_sizes": [20],
        "widths": [8],
        "dilations": [1],
    }


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(torch.device("cuda"), Precision.float32), "CPU"),
        (Request(torch.device("cpu"), Precision.float64), "float64"),
        (Request(torch.device("cpu"), Precision.float16), "float16"),
    ],
)
def test_requests_it_cannot_serve_are_refused_with_the_reason(request_: Request, reason: str) -> None:
    assert reason in str(CPU.supports(request_))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("training", [False, True])
def test_training_and_inference_on_cpus_are_served(training: bool, precision: Precision) -> None:
    assert CPU.supports(Request(torch.device("cpu"), precision, training, MetaTasNetConfig())) is None


@needs_the_module
def test_an_unusable_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "magic")
    assert "magic" in str(CPU.unavailable())
    with pytest.raises(BackendUnavailableError, match="generic"):
        prepare(CPU, STAGE, stage_parameters(recipe(TINY), 1))


def test_without_the_compiled_module_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "reason", lambda: "the compiled module is not there; install it.")
    assert "install it" in str(CPU.unavailable())
