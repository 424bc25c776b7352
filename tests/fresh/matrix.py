"""Install the package with the newest and the oldest versions of what it needs, on several Pythons, and use it.

Each row makes a virtual environment with uv, installs a wheel of this tree without pins, separates an MP3 and a WAV, and runs
the smoke tests. Nothing but Python 3.10 or newer and a package registry is needed. Packages are kept in one cache and linked
into the environments; both are removed at the end.

    python tests/fresh/matrix.py                          every row for the Pythons at hand
    python tests/fresh/matrix.py --python 3.10 /usr/bin/python3.13 --rows newest oldest
    python tests/fresh/matrix.py --torch-index https://download.pytorch.org/whl/cpu
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = [
    "tests/test_import.py", "tests/test_config.py", "tests/audio/test_read.py", "tests/audio/test_odd_files.py",
    "tests/audio/test_tags.py", "tests/audio/test_write.py", "tests/cli/test_separate.py", "tests/cli/test_separate_odd.py",
    "tests/separation/test_separator.py", "tests/model/test_checkpoints.py", "tests/evaluation/test_bss_eval.py",
    "tests/training/data/test_musdb_sources.py",
]  # fmt: skip
BUILD = ["setuptools>=77", "wheel", "pybind11>=2.13", "cmake>=3.18", "ninja>=1.11"]
PROGRAMS = ["sh", "env", "uname", "cat", "ls", "rm", "mkdir", "ldconfig"]
"""What is on the PATH besides Python where there is to be no compiler."""


@dataclass(frozen=True)
class Row:
    name: str
    resolution: str
    """``highest``, or ``lowest-direct``: the oldest versions that pyproject.toml allows and that have wheels."""
    extras: tuple[str, ...]
    compiler: bool
    tests: bool


ROWS = [
    Row("newest", "highest", ("test",), compiler=True, tests=True),
    Row("oldest", "lowest-direct", ("test",), compiler=True, tests=True),
    Row("no-compiler", "highest", ("cli",), compiler=False, tests=False),
    Row("no-extras", "highest", (), compiler=False, tests=False),
]


class Failure(Exception):
    pass


def run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None, log: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if log is not None:
        with log.open("a") as file:
            file.write(f"$ {' '.join(words)}\n{done.stdout}\n")
    if done.returncode:
        raise Failure(
            f"{' '.join(words[:6])} ...: exit {done.returncode}\n" + "\n".join(done.stdout.splitlines()[-25:])
        )
    return done.stdout


def clean_path(place: Path) -> str:
    """Return a folder without compilers and ffmpeg."""
    place.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        found = shutil.which(program)
        if found and not (place / program).exists():
            (place / program).symlink_to(found)
    return str(place)


class Matrix:
    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.env |= {
            "UV_CACHE_DIR": str(work / "cache"),
            "UV_LINK_MODE": "hardlink",
            "UV_PYTHON_DOWNLOADS": args.downloads,
        }
        for stale in [work / "source", *work.glob("wheel-*")]:
            shutil.rmtree(stale, ignore_errors=True)
        tools = work / "tools"
        if not tools.exists():
            run(sys.executable, "-m", "venv", tools)
            run(tools / "bin/python", "-m", "pip", "-q", "install", "uv", env=self.env)
        self.uv = tools / "bin/uv"

    def interpreters(self) -> list[tuple[str, str]]:
        """Return version and path of the Pythons that were asked for: by default 3.10 and the newest that can be had."""
        if self.args.python:
            names = self.args.python
        else:
            listed = json.loads(
                subprocess.check_output([self.uv, "python", "list", "--output-format", "json"], env=self.env)
            )
            versions = {(v["version_parts"]["major"], v["version_parts"]["minor"]) for v in listed if v["path"]}
            if self.args.downloads == "manual":
                for version in ("3.10", "3.14"):
                    subprocess.run([self.uv, "python", "install", version], env=self.env, stderr=subprocess.DEVNULL)
                    versions.add((3, int(version.split(".")[1])))
            usable = [f"{major}.{minor}" for major, minor in sorted(versions) if (3, 10) <= (major, minor) <= (3, 14)]
            names = list(dict.fromkeys([usable[0], usable[-1]]))
        found = []
        for name in names:
            path = run(self.uv, "python", "find", "--no-project", name, env=self.env).strip().splitlines()[-1]
            version = run(path, "-c", "import platform; print(platform.python_version())").strip()
            found.append((version, path))
        return found

    def wheel(self, row: Row, version: str, python: str) -> Path:
        """Build the wheel of this tree for a Python, with or without a compiler at hand."""
        out = self.work / f"wheel-{version}-{'compiled' if row.compiler else 'plain'}"
        if not list(out.glob("*.whl")):
            builder = self.work / f"builder-{version}"
            if not builder.exists():
                run(self.uv, "venv", "-q", "--python", python, builder, env=self.env)
                run(self.uv, "pip", "install", "-q", "--python", builder / "bin/python", "build", *BUILD, env=self.env)
            path = f"{builder / 'bin'}:{os.environ['PATH'] if row.compiler else clean_path(self.work / 'bin')}"
            env = {**self.env, "PATH": path, "METATASNET_CUDA": "off"} | ({} if row.compiler else {"CC": "", "CXX": ""})
            source = self.work / "source"
            if not source.exists():
                ignored = shutil.ignore_patterns(".venv", "build", ".git", "*.so", "__pycache__", "_native_absent.txt")
                shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
            shutil.rmtree(source / "build", ignore_errors=True)
            run(builder / "bin/python", "-m", "build", "-n", "-w", "-o", out, source, env=env, log=self.log)
        return next(out.glob("*.whl"))

    def install(self, row: Row, python: str, wheel: Path, place: Path) -> Path:
        run(self.uv, "venv", "-q", "--clear", "--python", python, place, env=self.env)
        interpreter = place / "bin/python"
        index = (
            ["--index", self.args.torch_index, "--index-strategy", "unsafe-best-match"] if self.args.torch_index else []
        )
        options = [
            "--resolution",
            row.resolution,
            "--only-binary",
            ":all:",
            "--no-binary",
            "ffmpeg-python,future",
            *index,
        ]
        extras = [word for extra in row.extras for word in ("--extra", extra)]
        install = [self.uv, "pip", "install", "--python", interpreter]
        # The requirements of pyproject.toml are the direct ones, not those of the wheel: for lowest-direct.
        run(*install, *options, "-r", ROOT / "pyproject.toml", *extras, env=self.env, log=self.log)
        run(*install, "--no-deps", wheel, env=self.env, log=self.log)
        return interpreter

    def row(self, row: Row, version: str, python: str) -> str:
        self.log = self.args.log.resolve() / f"{version}-{row.name}.log"
        self.log.unlink(missing_ok=True)
        place = self.work / "environment"
        try:
            wheel = self.wheel(row, version, python)
            interpreter = self.install(row, python, wheel, place)
            listing = (
                "from importlib.metadata import distributions; [print(d.name, d.version) for d in distributions()]"
            )
            versions = dict(line.split() for line in run(interpreter, "-c", listing).splitlines())
            shown = ("torch", "numpy", "soundfile", "av", "mutagen", "safetensors", "triton", "pytest", "ray")
            said = " ".join(f"{name} {versions[name]}" for name in shown if name in versions)
            path = os.environ["PATH"] if row.compiler else clean_path(self.work / "bin")
            env = {**self.env, "PATH": f"{interpreter.parent}:{path}"}
            with tempfile.TemporaryDirectory() as away:  # not in the tree: the installed package is used
                smoke = ROOT / "tests/fresh/smoke.py"
                found = run(
                    interpreter, smoke, "extras" if row.extras else "none", cwd=Path(away), env=env, log=self.log
                )
                outcome = found.strip().splitlines()[-1]
                if row.tests:
                    outcome += "; " + self.pytest(interpreter, Path(away), env)
            return f"ok      {outcome} [{said}]"
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def pytest(self, interpreter: Path, away: Path, env: dict[str, str]) -> str:
        shutil.copytree(ROOT / "tests", away / "tests", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", away)
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *SMOKE]
        return (
            run(interpreter, *words, cwd=away, env={**env, "PYTHONPATH": str(away)}, log=self.log)
            .strip()
            .splitlines()[-1]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", nargs="+", metavar="P", help="versions or paths (default: 3.10 or the oldest, and the newest)"
    )
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--torch-index", metavar="URL", help="another index for torch, such as that of its CPU builds")
    parser.add_argument(
        "--downloads", choices=("never", "manual"), default="never", help="manual: let uv fetch Pythons 3.10 and 3.14"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/matrix", help="for environments and the cache; removed"
    )
    parser.add_argument("--log", type=Path, default=ROOT / "build/matrix-logs", help="folder of a log for each row")
    parser.add_argument("--keep", action="store_true", help="keep the cache for the next run")
    args = parser.parse_args()
    args.log.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    failed = 0
    try:
        matrix = Matrix(args, args.work.resolve())
        for version, python in matrix.interpreters():
            for row in (row for row in ROWS if row.name in args.rows):
                began = time.monotonic()
                try:
                    said = matrix.row(row, version, python)
                except Failure as failure:
                    failed += 1
                    said = f"FAILED  {failure}"
                print(f"Python {version:<8} {row.name:<12} {time.monotonic() - began:5.0f} s  {said}", flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(args.work, ignore_errors=True)
    print(f"{'all rows passed' if not failed else f'{failed} rows failed'}; logs in {args.log}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
