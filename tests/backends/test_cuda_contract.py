"""What the backend ``cuda`` promises beyond the others: its module, its refusals; emulated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.backends import available_backends, registry
from metatasnet_fast.backends.cuda import KERNELS, UNVERIFIED, CudaBackend
from metatasnet_fast.backends.cuda_weights import pack, round_tf32, sizes, slopes, spectrogram_arrays
from metatasnet_fast.backends.registry import Request
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import BackendUnavailableError
from metatasnet_fast.precision import Precision
from metatasnet_fast.reference import generate
from tests.backends.cpu_support import prepare, recipe, stage_parameters
from tests.backends.cuda_support import EMULATED, PRECISIONS, needs_the_module
from tests.support import TINY

STAGE = TINY.stage(1)
CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def prepared() -> Any:
    return prepare(EMULATED, STAGE, stage_parameters(recipe(TINY), 1))


@needs_the_module
def test_the_compiled_module_checks_what_it_is_given(prepared: Any) -> None:
    stage, good = prepared.stage, torch.zeros(1, 50, STAGE.N)
    signal, workspace = torch.zeros(1, 50 * STAGE.W), torch.zeros(stage.decode_bytes(1, 50), dtype=torch.uint8)
    with pytest.raises(ValueError, match="latent must have shape"):
        stage.decode(good[..., 1:], signal, workspace, 0)
    with pytest.raises(ValueError, match="signal must have shape"):
        stage.decode(good, signal[:, 1:], workspace, 0)
    with pytest.raises(ValueError, match="latent must be float32"):
        stage.decode(good.double(), signal, workspace, 0)
    with pytest.raises(ValueError, match="contiguous channels"):
        stage.decode(torch.zeros(1, STAGE.N, 50).mT, signal, workspace, 0)
    with pytest.raises(ValueError, match="multiple of 16"):
        stage.decode(torch.zeros(50 * STAGE.N + 1)[1:].view(1, 50, STAGE.N), signal, workspace, 0)
    with pytest.raises(ValueError, match="contiguous"):
        stage.decode(good, torch.zeros(1, 100 * STAGE.W)[:, ::2], workspace, 0)
    with pytest.raises(ValueError, match="bytes"):
        stage.decode(good, signal, workspace[:-1], 0)
    with pytest.raises(ValueError, match="cpu, got meta"):
        stage.decode(good.to("meta"), signal, workspace, 0)


@needs_the_module
def test_wrong_weights_are_refused_by_name() -> None:
    weights = generate(STAGE, stage_parameters(recipe(TINY), 1))
    arrays, make = {**pack(weights, Precision.float32), **spectrogram_arrays(weights)}, native.load().EmulatedCudaStage
    arguments = ("float32", sizes(STAGE), slopes(weights))
    make(*arguments, arrays)
    with pytest.raises(ValueError, match=r"lack 'mask.blocks.1.mix'"):
        make(*arguments, {name: value for name, value in arrays.items() if name != "mask.blocks.1.mix"})
    with pytest.raises(ValueError, match=r"'encoder.bank' must have shape"):
        make(*arguments, {**arrays, "encoder.bank": arrays["encoder.bank"][1:].clone()})
    with pytest.raises(ValueError, match=r"'encoder.bank' must be bfloat16"):
        make("bfloat16", *arguments[1:], arrays)
    with pytest.raises(ValueError, match="precision"):
        make("float12", *arguments[1:], arrays)
    with pytest.raises(ValueError, match="two slopes"):
        make(*arguments[:2], slopes(weights)[:-1], arrays)


@needs_the_module
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"N": 12}, "multiples of 8"),
        ({"n_fft": 1536}, "power of two"),
        ({"n_fft": 16384}, "power of two"),
        ({"window": 81}, "even"),
        ({"W": 4}, "64 times W"),
        ({"W": 400, "window": 400}, "W must be at most"),
        ({"dilations": []}, "one block"),
        ({"dilations": [0]}, "Dilations"),
        ({"H": 0}, "at least 1"),
        ({"mels": -1}, "mels"),
        ({"hop": 0}, "hop"),
        ({"instruments": 0}, "1 to 32 instruments"),
        ({"instruments": 33}, "1 to 32 instruments"),
        ({"softmax": 5}, "0 to all instruments"),
    ],
)
def test_sizes_that_are_not_covered_are_named(change: dict[str, Any], reason: str) -> None:
    assert native.load().cuda_refusal(sizes(STAGE)) is None
    found = native.load().cuda_refusal({**sizes(STAGE), "window": 320, "W": 40, **change})
    assert found is not None and reason in found


@needs_the_module
def test_the_default_network_is_covered() -> None:
    for config in (MetaTasNetConfig(), MetaTasNetConfig(sampling_rate=16000)):
        assert EMULATED.supports(Request(torch.device("cpu"), Precision.bfloat16, config=config)) is None
    strange = MetaTasNetConfig(sampling_rate=24000)
    assert "stage 0" in str(EMULATED.supports(Request(torch.device("cpu"), Precision.bfloat16, config=strange)))


@needs_the_module
@pytest.mark.parametrize("precision", PRECISIONS)
def test_workspaces_do_not_grow_with_the_batch_for_ever(precision: Precision) -> None:
    stage = prepare(EMULATED, TINY.stage(0), stage_parameters(recipe(TINY), 0), precision).stage
    for bytes_of in (lambda n: stage.mask_bytes(n, 3200, False), lambda n: stage.decode_bytes(n, 3200)):
        assert 0 < bytes_of(1) < bytes_of(2)
        assert bytes_of(100) == bytes_of(1000)
    assert stage.mask_bytes(1, 3200, True) > stage.mask_bytes(1, 3200, False)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(torch.device("cpu"), Precision.float32), "NVIDIA"),
        (Request(torch.device("cuda"), Precision.float32, training=True), "gradients"),
        (Request(torch.device("cuda"), Precision.float64), "float64"),
        (Request(torch.device("cuda"), Precision.float16), "float16"),
    ],
)
def test_requests_it_cannot_serve_are_refused_with_the_reason(request_: Request, reason: str) -> None:
    assert reason in str(CudaBackend().supports(request_))


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in str(CudaBackend().supports(Request(torch.device("cuda"), Precision.bfloat16)))
    assert "choose another backend" in str(CudaBackend().supports(Request(torch.device("cuda"), Precision.bfloat16)))


@needs_the_module
def test_gpus_with_little_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(torch.device("cpu"), Precision.bfloat16, config=MetaTasNetConfig())
    assert EMULATED.supports(request) is None
    monkeypatch.setattr(EMULATED, "_shared_memory", lambda device: 99 * 1024)
    assert EMULATED.supports(request) is None
    monkeypatch.setattr(EMULATED, "_shared_memory", lambda device: 64 * 1024)
    assert "shared memory" in str(EMULATED.supports(request))
    assert EMULATED.supports(Request(request.device, Precision.bfloat16, config=TINY)) is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_to_do() -> None:
    reason = str(available_backends()["cuda"].reason)
    assert "torch finds no GPU" in reason or "no CUDA kernels" in reason or str(native.reason()) in reason
    with pytest.raises(BackendUnavailableError, match="cannot run"):
        prepare(CudaBackend(), STAGE, stage_parameters(recipe(TINY), 1))


class WithoutKernels:
    """A compiled module that was built without nvcc."""

    @staticmethod
    def cuda_build_info() -> dict[str, str]:
        return {"reason": "there was no nvcc", "architectures": "", "compiler": ""}


def test_a_build_without_nvcc_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", WithoutKernels)
    assert "there was no nvcc" in str(native.cuda_reason()) and "METATASNET_CUDA=on" in str(native.cuda_reason())


def test_a_module_older_than_the_source_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", object)
    assert "build it again" in str(native.cuda_reason())
    assert "build it again" in str(CudaBackend().unavailable())


def test_rounding_to_tf32_is_to_nearest_with_ties_away_from_zero() -> None:
    one = 1.0
    ulp = 2.0**-10
    values = torch.tensor([one, one + ulp / 2, one + ulp / 2 - 2**-20, -one - ulp / 2, one + ulp, 0.0])
    expected = torch.tensor([one, one + ulp, one, -one - ulp, one + ulp, 0.0])
    assert torch.equal(round_tf32(values), expected)


def test_every_kernel_is_listed_and_auto_takes_none_that_no_gpu_has_run() -> None:
    declared = r"^struct (\w+) \{\n  using Args = "
    found = {name for file in CSRC.glob("*.h") for name in re.findall(declared, file.read_text(), re.MULTILINE)}
    assert found == set(KERNELS) >= set(UNVERIFIED)
    assert not UNVERIFIED or "cuda" not in registry._PREFERENCE["cuda"]
