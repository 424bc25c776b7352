"""Run the steps of the Containerfile without an engine for containers, in a folder that holds a Debian with Python.

    debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,python-is-python3,ca-certificates trixie ROOT
    python3 tests/fresh/image.py ROOT [--set CUDA= INDEX=...]      as root, for chroot

Both stages run in the same folder, so that what a later stage copies is there already. At the end the image's program says
what it can run on, and separates the demo's excerpt as the user that the image names.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "__pycache__", "golden", "results")


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield instructions and their arguments, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


class Image:
    def __init__(self, root: Path, chosen: dict[str, str]) -> None:
        self.root, self.chosen = root, chosen
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.environment |= {key: value for key, value in os.environ.items() if key.endswith(("_proxy", "_PROXY"))}
        self.user = "root"

    def step(self, word: str, rest: str) -> None:
        print(f"== {word} {rest}", flush=True)
        if word == "ARG":
            name, _, default = rest.partition("=")
            self.environment[name] = self.chosen.get(name, default.strip('"'))
        elif word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                self.environment[name] = value.replace("$PATH", self.environment["PATH"])
        elif word == "COPY" and not rest.startswith("--from"):
            source, target = rest.split()
            place = self.root / target.lstrip("/")
            shutil.copytree(TREE / source, place, dirs_exist_ok=True, symlinks=True, ignore=LEFT_OUT)
        elif word == "RUN":
            self.run(rest)
        elif word == "USER":
            self.user = rest

    def run(self, command: str) -> None:
        words = [
            "chroot",
            *([f"--userspec={self.user}"] if self.user != "root" else []),
            str(self.root),
            "sh",
            "-ec",
            command,
        ]
        subprocess.run(words, env=self.environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="as --build-arg")
    args = parser.parse_args()
    image = Image(args.root.resolve(), dict(pair.split("=", 1) for pair in args.set))
    for word, rest in steps((TREE / "Containerfile").read_text()):
        image.step(word, rest)
    image.run("metatasnet-fast info")
    image.run("metatasnet-fast demo -o /scratch/demo && ls -l /scratch/demo")


if __name__ == "__main__":
    sys.exit(main())
