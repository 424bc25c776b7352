"""What the backend ``cpu`` promises beyond the others: what it does not call, its module, its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metatasnet_fast import native
from metatasnet_fast.backends.cpu import ISA_VARIABLE
from metatasnet_fast.backends.registry import Request
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import BackendUnavailableError
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import (
    CPU,
    PRECISIONS,
    needs_the_module,
    noise,
    prepare,
    recipe,
    stage_parameters,
)
from tests.support import TINY

STAGE = TINY.stage(1)


@pytest.fixture(scope="module")
def prepared() -> Any:
    return prepare(CPU, STAGE, stage_parameters(recipe(TINY), 1))


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
