"""The tile registers of AMX: permission from the kernel, and a thread that torch uses them in too."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch

from metatasnet_fast.backends.cpu import ISA_VARIABLE
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import CPU, EVERY_ISA, ISAS, NOT_HERE, needs_the_module, noise, separate
from tests.support import TINY, recipe_state

pytestmark = needs_the_module

AMX = pytest.param("amx_bf16", marks=[] if "amx_bf16" in ISAS else pytest.mark.skip(reason=NOT_HERE.get("amx_bf16")))

# Linux refuses tiles to a process one of whose threads has a signal stack that their state does not fit on.
REFUSED = """
import ctypes, json, os

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
from metatasnet_fast import native
from metatasnet_fast.backends.cpu import CpuBackend
module = native.load()
os.environ["METATASNET_CPU_ISA"] = "amx_bf16"
print(json.dumps([module.cpu_isas(), module.unusable_cpu_isas(), CpuBackend().unavailable()]))
"""


@pytest.mark.parametrize("isa", [AMX])
@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux is asked for permission")
def test_a_refused_permission_leaves_the_next_instruction_set_and_a_reason(isa: str) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    usable, reasons, sentence = json.loads(done.stdout)
    assert usable == [name for name in ISAS if name != isa]
    assert "signal stack" in reasons[isa]
    assert f"{ISA_VARIABLE}={isa}" in sentence and "signal stack" in sentence and "avx512_bf16" in sentence


@pytest.mark.parametrize("isa", [AMX])
def test_the_thread_that_calls_can_go_on_multiplying(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own products use the same registers, before, between and after calls, in the same thread."""
    monkeypatch.setenv(ISA_VARIABLE, isa)
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 4321)
    product, found = a @ b, separate(CPU, TINY, state, mixes, Precision.bfloat16)
    for _ in range(3):
        again = separate(CPU, TINY, state, mixes, Precision.bfloat16)
        assert all(torch.equal(x, y) for x, y in zip(again, found, strict=True))
        assert torch.equal(a @ b, product)


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_float32_has_the_bits_of_avx512(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16's instructions change nothing in float32: the same code and the same order of every sum."""
    if not isa.endswith("_bf16"):
        pytest.skip("it has nothing beyond float32's instructions")
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 4321)
    monkeypatch.setenv(ISA_VARIABLE, "avx512")
    expected = separate(CPU, TINY, state, mixes)
    monkeypatch.setenv(ISA_VARIABLE, isa)
    assert all(torch.equal(x, y) for x, y in zip(separate(CPU, TINY, state, mixes), expected, strict=True))
