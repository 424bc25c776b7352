"""Use an installed metatasnet-fast as its README says: separate an MP3 and a WAV, or be told what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("metatasnet-fast"))
    return subprocess.run([program, *words], capture_output=True, text=True)


def with_extras() -> str:
    import torch

    from metatasnet_fast.audio import read_audio, write_audio

    t = torch.arange(2 * 44100) / 44100
    music = 0.2 * torch.stack([torch.sin(2 * torch.pi * 220 * t), torch.sin(2 * torch.pi * 3300 * t)])
    for name in ("a.mp3", "b.wav"):
        write_audio(name, music, 44100)
    done = command("separate", "a.mp3", "b.wav", "--json")
    assert done.returncode == 0, done
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["status"] for entry in entries] == ["done", "done"], done
    for entry in entries:
        for path in entry["files"].values():
            assert read_audio(path).samples.shape == (2, 88200), path
    return f"separated an MP3 and a WAV with {entries[0]['backend']}"


def without_extras() -> str:
    from metatasnet_fast import MetaTasNetConfig, MultiTasNet, Separator

    network = MultiTasNet(MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=8))
    stems = Separator(network).separate(np.zeros((2, 44100), np.float32), 44100)
    assert all(stem.shape == (2, 44100) for stem in stems.values())
    Path("a.mp3").write_bytes(b"ID3")
    done = command("separate", "a.mp3")
    assert done.returncode == 2 and "pip install" in done.stderr and len(done.stderr.splitlines()) == 1, done
    return f"separated an array; the command says: {done.stderr.strip()}"


info = command("info")
assert info.returncode == 0 and "backends" in info.stdout, info
print(info.stdout)
print(with_extras() if sys.argv[1] == "extras" else without_extras())
