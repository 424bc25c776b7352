"""Where memory does not suffice outside the batches, one sentence says what needs less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.audio import write_audio
from metatasnet_fast.errors import MetaTasNetError, OutOfMemoryError
from metatasnet_fast.separation.devices import choose_home
from metatasnet_fast.separation.recording import Recording

from .conftest import music

pytest.importorskip("soundfile", reason="soundfile, which reads and writes audio, is not installed")

FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean_blocks(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Recording, "clean_blocks", clean_blocks)


@pytest.mark.parametrize("error", [FULL, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
@pytest.mark.parametrize(
    ("mode", "to_files", "advice"),
    [
        ("reference", False, "use fast mode"),
        ("reference", True, "use fast mode"),
        ("fast", False, "write the stems to files"),
        ("fast", True, "free some"),
    ],
)
def test_a_file_for_which_memory_does_not_suffice_is_a_typed_error(
    separator: Separator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    mode: str,
    to_files: bool,
    advice: str,
) -> None:
    write_audio(tmp_path / "long.wav", music(1, 900), 44100)
    separator.mode = mode
    fail_with(error, monkeypatch)
    with pytest.raises(OutOfMemoryError, match=f"long.wav.*{advice}") as caught:
        separator.separate_file(tmp_path / "long.wav", tmp_path / "out" if to_files else None)
    assert caught.value.__cause__ is error and isinstance(caught.value, MetaTasNetError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mode", "advice"), [("reference", "use fast mode"), ("fast", "let separate_file")])
def test_a_waveform_for_which_memory_does_not_suffice_is_a_typed_error(
    separator: Separator, monkeypatch: pytest.MonkeyPatch, mode: str, advice: str
) -> None:
    separator.mode = mode
    fail_with(FULL, monkeypatch)
    with pytest.raises(OutOfMemoryError, match=advice):
        separator.separate(music(1, 900), 44100)


def test_what_is_not_missing_memory_stays_what_it_is(separator: Separator, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("shape mismatch")
    fail_with(error, monkeypatch)
    with pytest.raises(RuntimeError, match="shape mismatch") as caught:
        separator.separate(music(1, 900), 44100)
    assert caught.value is error


def test_signals_stay_on_a_gpu_if_all_stems_fit() -> None:
    gpu, recording = torch.device("cuda", 0), Recording.from_memory(torch.zeros(2, 1000), 44100)
    for stems in (1, 4, 32):
        most = 4 * 2 * 1000 * (3 + stems)  # the recording, twice that resampled, and the stems, in float32
        assert choose_home(gpu, recording, stems, most + 1) == gpu
        assert choose_home(gpu, recording, stems, most).type == "cpu"


def test_a_network_that_does_not_fit_onto_the_device_is_a_typed_error(
    network: MultiTasNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*_: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(network), "device", property(lambda self: torch.device("meta")))
    monkeypatch.setattr(torch.nn.Module, "to", to)
    with pytest.raises(OutOfMemoryError, match="the network on cpu: free some"):
        Separator(network, "cpu", "reference")
