"""A network as a program: compiled, exported and written for other runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from metatasnet_fast import MetaTasNetConfig, MultiTasNet, export, use_backend
from metatasnet_fast.backends import available_backends
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import CheckpointError
from metatasnet_fast.model.programs import SHORTEST, exported_program

SMALL = MetaTasNetConfig(
    stages_num=2, N=16, L=40, W=20, B=16, H=16, layers=2, stack=1, num_mels=8, filters=2,
    instruments=("violin", "viola", "cello"),
)  # fmt: skip
SIZES = [(1, SHORTEST), (2, SHORTEST + 1), (1, 400)]
BACKENDS = [name for name in ("reference", "triton") if available_backends()[name].available]


@pytest.fixture(scope="module")
def network() -> MultiTasNet:
    torch.manual_seed(0)
    return MultiTasNet(SMALL).eval()


def mixes(batch: int, frames: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(frames)
    return [torch.randn(batch, 1, frames * stage.W, generator=generator) for stage in SMALL.stages]


def inference(network: MultiTasNet, mixes: list[Tensor], backend: str = "reference") -> Tensor:
    with torch.no_grad(), use_backend(backend):
        return network.inference(mixes, n_chunks=1)[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_is_one_graph(backend: str, network: MultiTasNet) -> None:
    torch.compiler.reset()
    compiled = torch.compile(network.inference, fullgraph=True, backend="eager")
    given = mixes(2, 150)
    with torch.no_grad(), use_backend(backend):
        found = compiled(given, 1)[-1]
    assert torch.equal(found, inference(network, given, backend))


def test_a_compiled_network_follows_its_parameters() -> None:
    torch.compiler.reset()
    network = MultiTasNet(SMALL).eval()
    compiled = torch.compile(network.inference, fullgraph=True, backend="eager")
    given = mixes(1, 150)
    with torch.no_grad(), use_backend("reference"):
        compiled(given, 1)
        network.get_parameter("stages.0.instrument_embedding.weight").data += 1
        found = compiled(given, 1)[-1]
    assert torch.equal(found, inference(network, given))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_program_computes_what_the_network_does(backend: str, network: MultiTasNet) -> None:
    program = exported_program(network, backend).module()
    for batch, frames in SIZES:
        given = mixes(batch, frames)
        with torch.no_grad():
            found = program(*given)
        assert (found - inference(network, given, backend)).abs().max() < 1e-6


def test_a_program_takes_nothing_that_is_no_multiple_of_the_stride(network: MultiTasNet) -> None:
    program = exported_program(network).module()
    with pytest.raises(Exception, match=r"mixes|args\[0\]"):
        program(*[mix[..., :-1] for mix in mixes(1, 200)])


def test_a_pt2_file_holds_the_program(network: MultiTasNet, tmp_path: Path) -> None:
    export(network, tmp_path / "network.pt2")
    program = torch.export.load(tmp_path / "network.pt2").module()
    given = mixes(2, 150)
    assert torch.equal(program(*given), inference(network, given))


def test_onnx_runtime_computes_what_the_network_does(network: MultiTasNet, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "network.onnx")]) == 0
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == {"instruments": "violin,viola,cello", "sampling_rates": "8000,16000", "multiple_of": "20,40"}
    for batch, frames in SIZES:
        for gain in (1, 0.01, 0):
            given = [gain * mix for mix in mixes(batch, frames)]
            (found,) = session.run(["estimates"], {f"mix_{s}": mix.numpy() for s, mix in enumerate(given)})
            assert (torch.from_numpy(found) - inference(network, given)).abs().max() < 1e-5


def test_what_cannot_be_written_is_said(network: MultiTasNet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither in .onnx nor in .pt2"):
        export(network, tmp_path / "network.bin")
    with pytest.raises(CheckpointError, match="export with the reference"):
        export(network, tmp_path / "network.onnx", backend="triton")
    assert not list(tmp_path.iterdir())
