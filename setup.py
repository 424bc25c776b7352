"""Build the compiled module with CMake. Everything else about the package is in pyproject.toml.

``METATASNET_NATIVE`` decides, when the package is installed, about the module ``metatasnet_fast._native``. ``auto`` (default)
builds the module; if this fails, the package is installed without it, and ``metatasnet_fast.native.reason()`` returns why.
``on`` makes a failure fatal. ``off`` does not build the module.

``METATASNET_CUDA`` decides about the CUDA kernels in the module. ``auto`` (default) compiles the kernels if there is an
``nvcc``; if this fails, they are left out, and ``metatasnet_fast.native.cuda_reason()`` returns why. ``on`` makes a failure
fatal. ``off`` leaves the kernels out. ``METATASNET_CUDA_ARCHITECTURES`` names the GPUs to compile for, in CMake's form; the
default is ``80;90a-real``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REASON_FILE = "_native_absent.txt"  # read by metatasnet_fast/native.py


class BuildError(RuntimeError):
    """The compiled module could not be built; the message is one line."""


def requested_mode(name: str = "METATASNET_NATIVE") -> str:
    mode = os.environ.get(name, "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"{name}={mode} is not one of auto, on, off")
    return mode


def first_error(output: str) -> str:
    """Return the first error in the output of CMake or a compiler, as one line."""
    found = re.search(r"^.*(?:\berror\b|Error at).*(?:\n\n?  .*)*", output, re.MULTILINE | re.IGNORECASE)
    text = " ".join((found.group() if found else output.strip().rpartition("\n")[2]).split())
    return re.sub(r"^CMake Error at \S+ \(\w+\): ", "", text)[:400]


def run(*command: str | Path) -> None:
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BuildError(f"cannot run {arguments[0]} ({error.strerror})") from error
    print(done.stdout, flush=True)
    if done.returncode:
        raise BuildError(first_error(done.stdout))


def cuda_options(mode: str, reason: str = "METATASNET_CUDA=off when it was built") -> list[str]:
    options = [f"-DMETATASNET_CUDA={mode}", f"-DMETATASNET_CUDA_REASON={reason}"]
    architectures = os.environ.get("METATASNET_CUDA_ARCHITECTURES")
    return options + ([f"-DMETATASNET_CUDA_ARCHITECTURES={architectures}"] if architectures else [])


def build_native(prefix: Path) -> None:
    """Build and install the module, with the CUDA kernels if they are wanted and can be compiled."""
    mode = requested_mode("METATASNET_CUDA")
    try:
        build_with(cuda_options(mode), prefix)
    except BuildError as error:
        if mode != "auto" or not (os.environ.get("CUDACXX") or shutil.which("nvcc")):
            raise
        print(f"metatasnet-fast: building again WITHOUT the CUDA kernels: {error}", file=sys.stderr, flush=True)
        reason = re.sub(r'[;"$\\]', " ", f"they could not be compiled: {error}")[:200]
        build_with(cuda_options("off", reason), prefix)


def build_with(choices: list[str], prefix: Path) -> None:
    """Configure and build the module, and install it into ``prefix/metatasnet_fast``.

    Only what has changed is compiled again, unless the tools have changed.
    """
    build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
    programs = [sys.executable, shutil.which("cmake"), shutil.which("ninja"), shutil.which("nvcc")]
    variables = ("CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS", "CMAKE_GENERATOR")
    tools = repr([*programs, *(os.environ.get(name) for name in variables)])
    known = build / "tools.txt"  # CMake's cache of an isolated build may name tools that are gone
    if not known.exists() or known.read_text(encoding="utf-8") != tools:
        shutil.rmtree(build, ignore_errors=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") and "CMAKE_GENERATOR" not in os.environ else []
    options = [*generator, "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}", *choices]
    run("cmake", "-S", ROOT, "-B", build, *options)
    known.write_text(tools, encoding="utf-8")
    run("cmake", "--build", build, "--config", "Release", "--parallel", str(os.cpu_count() or 1))
    run("cmake", "--install", build, "--config", "Release", "--prefix", prefix, "--strip")


class CMakeBuild(build_ext):
    """A build step that builds the extension with CMake, or writes a file that says why there is no extension."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason_file = module.with_name(REASON_FILE)
        module.parent.mkdir(parents=True, exist_ok=True)
        module.unlink(missing_ok=True)
        reason_file.unlink(missing_ok=True)
        mode = requested_mode()
        try:
            if mode == "off":
                raise BuildError("METATASNET_NATIVE=off when it was installed")
            build_native(module.parent.parent)
        except BuildError as error:
            if mode == "on" or (mode == "auto" and requested_mode("METATASNET_CUDA") == "on"):
                raise SystemExit(f"metatasnet-fast: the compiled module could not be built: {error}") from error
            print(f"metatasnet-fast: installing WITHOUT the compiled module: {error}", file=sys.stderr, flush=True)
            reason_file.write_text(f"{error}\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Copy the module, or the file with the reason, into the source tree of an editable install; delete older ones."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            for name in (built.name, REASON_FILE):
                source, target = built.with_name(name), ROOT / "metatasnet_fast" / name
                target.unlink(missing_ok=True)
                if source.exists():
                    shutil.copy2(source, target)


def packages() -> list[str]:
    """Return the names of the packages in metatasnet_fast/, and of those in kernels/, as they are installed.

    In a checkout ``metatasnet_fast/kernels`` is a link to ``kernels/``, so that imports work without an installation. A source
    distribution has no links, so the packages below kernels/ are always taken from kernels/ itself.
    """
    unwanted = ["metatasnet_fast.kernels*", "*.__pycache__"]
    own = find_namespace_packages(str(ROOT), include=["metatasnet_fast*"], exclude=unwanted)  # also folders of assets
    return [*own, *("metatasnet_fast." + name for name in find_packages(str(ROOT), include=["kernels*"]))]


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir={"metatasnet_fast.kernels": "kernels"},
        ext_modules=[Extension("metatasnet_fast._native", sources=[], optional=requested_mode() != "on")],
        cmdclass={"build_ext": CMakeBuild},
    )
