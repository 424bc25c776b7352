"""Run a compiler, and write what ptxas prints about registers, spills and shared memory into a file beside the object file.

For example, the command

    python keep_readings.py nvcc ... -o kernels.cu.o

writes ``kernels.cu.o.ptxas.txt``, which tests/cuda reads, and prints everything else that the compiler printed.
"""

import subprocess
import sys


def main(command: "list[str]") -> int:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    readings, rest = [], []
    for line in done.stdout.splitlines():
        (readings if line.startswith("ptxas info") or "bytes stack frame" in line else rest).append(line)
    if "-o" in command:
        with open(command[command.index("-o") + 1] + ".ptxas.txt", "w", encoding="utf-8") as file:
            file.write("\n".join([*readings, ""]))
    if rest:
        print("\n".join(rest))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
