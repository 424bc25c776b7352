"""Why a GPU cannot be used is said in one sentence with what to do, and `auto` takes the next backend and says so."""

from __future__ import annotations

import logging
import shutil
import sysconfig
import types
from pathlib import Path

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.backends import Request, gpu, registry, resolve
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.backends.triton import TritonBackend
from metatasnet_fast.precision import Precision

GPU = torch.device("cuda")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gpu.compiler_reason.cache_clear()
    yield
    gpu.compiler_reason.cache_clear()


@pytest.fixture
def triton_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As up to 3.8; later ones bring what they need."""
    monkeypatch.setattr(gpu, "_compiles", lambda: True)


def test_a_missing_c_compiler_is_named(
    a_gpu: None, triton_that_compiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert TritonBackend().unavailable() == (
        "Triton needs a C compiler to launch kernels and finds none; install gcc, or set CC."
    )


def test_missing_headers_of_python_are_named(
    a_gpu: None, triton_that_compiles: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers" in str(TritonBackend().unavailable())


def test_a_triton_that_compiles_nothing_needs_no_compiler(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_compiles", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert TritonBackend().unavailable() is None


def test_auto_passes_over_triton_without_a_compiler_and_says_so(
    a_gpu: None, triton_that_compiles: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    registry._announce.cache_clear()
    with caplog.at_level(logging.WARNING, "metatasnet_fast"):
        assert resolve("auto", Request(GPU, Precision.bfloat16)).name == "reference"
    assert "passed over: triton: Triton needs a C compiler" in caplog.text
    registry._announce.cache_clear()


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert gpu.no_gpu_reason() == (
        "torch finds no GPU: the driver (for CUDA 11.4) is too old for its CUDA 13.0; update the driver."
    )


def test_a_torch_without_gpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "it is a build for CPUs" in str(gpu.no_gpu_reason())


def module(architectures: str, obstacle: str = "") -> types.SimpleNamespace:
    """A compiled module, and what the CUDA runtime says of its kernels on the second GPU."""
    info = {"architectures": architectures, "compiler": "nvcc 13.0.88", "reason": ""}
    return types.SimpleNamespace(cuda_build_info=lambda: info, cuda_obstacle=lambda index: obstacle if index else "")


def test_a_module_without_code_for_the_gpu_is_named(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: module("80-real", "no kernel image is available"))
    assert CudaBackend().supports(Request(torch.device("cuda:1"), Precision.bfloat16)) == (
        "its kernels, compiled for 80-real, do not run on cuda:1, which is sm_90 (no kernel image is available); "
        "update the driver, or build with METATASNET_CUDA_ARCHITECTURES=90."
    )
    assert CudaBackend().supports(Request(torch.device("cuda:0"), Precision.bfloat16)) is None


@pytest.mark.skipif(native.cuda_reason() is not None, reason=str(native.cuda_reason()))
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_runtime_says_why_kernels_cannot_run_without_a_gpu() -> None:
    assert "CUDA" in native.load().cuda_obstacle(0)


@pytest.mark.parametrize(("driver", "refused"), [((12, 8), True), ((13, 0), False), ((14, 1), False), (None, False)])
def test_a_driver_older_than_the_modules_cuda_is_named(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] | None, refused: bool
) -> None:
    monkeypatch.setattr(native, "load", lambda: module("80"))
    monkeypatch.setattr("metatasnet_fast.backends.cuda.driver_version", lambda: driver)
    reason = CudaBackend().unavailable()
    assert ("compiled by CUDA 13, and the NVIDIA driver supports CUDA 12.8" in str(reason)) == refused
    assert refused or reason is None
