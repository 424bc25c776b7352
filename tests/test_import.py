"""Importing the package is cheap, and needs nothing but torch and numpy."""

from __future__ import annotations

import subprocess
import sys

import metatasnet_fast


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_every_public_name_can_be_imported() -> None:
    for name in metatasnet_fast.__all__:
        assert getattr(metatasnet_fast, name) is not None


def test_only_torch_and_numpy_are_needed() -> None:
    optional = [
        "soundfile",
        "av",
        "mutagen",
        "safetensors",
        "huggingface_hub",
        "tqdm",
        "musdb",
        "museval",
        "matplotlib",
        "scipy",
    ]
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {optional!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import metatasnet_fast
for name in metatasnet_fast.__all__:
    getattr(metatasnet_fast, name)
network = metatasnet_fast.MultiTasNet(metatasnet_fast.MetaTasNetConfig(N=8, B=8, H=8, layers=1, stack=1, num_mels=2))
print(metatasnet_fast.available_backends()["reference"].available)
"""
    assert run(code).strip() == "True"


def test_import_adds_little_to_that_of_torch() -> None:
    code = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
import metatasnet_fast
for name in metatasnet_fast.__all__:
    getattr(metatasnet_fast, name)
print((time.perf_counter() - between) / (between - start))
"""
    assert min(float(run(code)) for _ in range(3)) < 0.25
