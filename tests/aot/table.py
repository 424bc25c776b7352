"""Print what every kernel needs on every GPU we name: ``python -m tests.aot.table [stage ...]``."""

from __future__ import annotations

import sys

import pytest

from . import compiling, network
from .test_compile import FRAMES, PRECISIONS


def rows(stage: int) -> list[tuple[str, str, str, int, compiling.Usage]]:
    """Layer, kernel, precision, capability and usage, each kernel once."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        launches = compiling.record_launches(patch)
        for precision, (dtype, tf32) in PRECISIONS.items():
            for name, use in network.uses(stage, FRAMES, dtype, tf32).items():
                launches.clear()
                use()
                for launch in launches:
                    for capability in compiling.SHARED_MEMORY:
                        key = (compiling.source(launch)[0].hash(), capability)
                        if key not in found:
                            usage = compiling.compile_for(launch, capability)
                            found[key] = (name, launch.kernel.__name__, precision, capability, usage)
    return list(found.values())


def main() -> None:
    print("| stage | layer | kernel | precision | GPU | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for stage in map(int, sys.argv[1:] or network.STAGES):
        for name, kernel, precision, capability, usage in rows(stage):
            print(
                f"| {stage} | {name} | {kernel} | {precision} | sm_{capability} | {usage.registers} | {usage.spills} "
                f"| {usage.shared} |"
            )


if __name__ == "__main__":
    main()
