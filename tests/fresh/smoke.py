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
    import torch

    from metatasnet_fast import Separator
    from metatasnet_fast.audio import read_audio, write_audio

    stems = Separator().separate(np.zeros((2, 44100), np.float32), 44100)
    assert all(stem.shape == (2, 44100) for stem in stems.values())
    write_audio("b.wav", torch.zeros(2, 44100), 44100)
    done = command("separate", "b.wav", "--json")
    assert done.returncode == 0, done
    for path in json.loads(done.stdout)["files"].values():
        assert read_audio(path).samples.shape == (2, 44100), path
    Path("a.mp3").write_bytes(b"ID3")
    refused = command("separate", "a.mp3")
    assert refused.returncode in (2, 3) and "pip install" in refused.stderr, refused
    return f"separated a WAV; of an MP3 the command says: {refused.stderr.strip().splitlines()[-1]}"


info = command("info")
assert info.returncode == 0 and "backends" in info.stdout, info
print(info.stdout)
print(with_extras() if sys.argv[1] == "extras" else without_extras())
