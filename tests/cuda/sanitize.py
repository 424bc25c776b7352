"""A short list of launches for NVIDIA's compute-sanitizer, on a GPU: every kernel, small sizes, odd lengths.

    python tests/cuda/sanitize.py            # memcheck, then racecheck; exit code 0 if both are clean
    python tests/cuda/sanitize.py --launches # the launches alone, which the tools run

Exit code 77 where there is no compute-sanitizer or no GPU for it, with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck")
SKIPPED = 77


def launches() -> None:
    sys.path.insert(0, str(ROOT))
    import torch

    from metatasnet_fast.backends.cuda import CudaBackend
    from metatasnet_fast.precision import Precision
    from tests.backends.cpu_support import noise, separate
    from tests.support import TINY, recipe_state

    state = {name: value.cuda() for name, value in recipe_state(TINY, 3).items()}
    for precision in (Precision.bfloat16, Precision.tf32, Precision.float32):
        for samples in (520, 3001):
            mixes = [mix.cuda() for mix in noise(TINY, 2, samples)]
            separate(CudaBackend(), TINY, state, mixes, precision)
            torch.cuda.synchronize()
    print("all launches done")


def obstacle() -> str | None:
    sys.path.insert(0, str(ROOT))
    from metatasnet_fast.backends.cuda import CudaBackend

    if shutil.which("compute-sanitizer") is None:
        return "there is no compute-sanitizer on PATH"
    return CudaBackend().unavailable()


def main() -> int:
    if "--launches" in sys.argv[1:]:
        launches()
        return 0
    reason = obstacle()
    if reason is not None:
        print(f"left out: {reason}")
        return SKIPPED
    worst = 0
    for tool in TOOLS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--target-processes", "all"]
        code = subprocess.run([*command, sys.executable, __file__, "--launches"], cwd=ROOT).returncode
        print(f"{tool}: {'clean' if code == 0 else f'exit code {code}'}")
        worst = max(worst, abs(code))
    return worst


if __name__ == "__main__":
    sys.exit(main())
