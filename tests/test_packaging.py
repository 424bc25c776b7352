"""What is shipped: the same files from a checkout and from a source distribution, with or without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # the tests' own cmake and ninja first
ASSET = "assets/nested/probe.bin"  # stands for the real assets, which are too large to copy and compress here


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    unwanted = ("PYTHONPATH", "METATASNET_NATIVE", "CXX")
    inherited = {key: value for key, value in os.environ.items() if key not in unwanted}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=inherited | {"PATH": TOOLS} | environment, capture_output=True, text=True
    )


def build(source: Path, kind: str, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    done = run("-c", code, cwd=source, METATASNET_NATIVE="off")
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, as a clone has it, with one small asset."""
    tree = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "_native_absent.txt", "assets")
    for name in ("csrc", "kernels", "metatasnet_fast"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    asset = tree / "metatasnet_fast" / ASSET
    asset.parent.mkdir(parents=True)
    asset.write_bytes(b"asset")
    return tree


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "metatasnet_fast").rglob("*.py")}
    modules |= {"metatasnet_fast/" + p.relative_to(ROOT).as_posix() for p in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names(wheel) if name.endswith(".py")} == modules


def test_the_wheel_holds_assets_types_and_licence(wheel: Path) -> None:
    wanted = {"py.typed", "_native.pyi", ASSET}
    assert {f"metatasnet_fast/{name}" for name in wanted} <= names(wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names(wheel))


def test_the_wheel_installs_one_top_level_package(wheel: Path) -> None:
    top = {name.split("/")[0] for name in names(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"metatasnet_fast"}


def test_a_source_distribution_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(checkout, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.glob("metatasnet_fast-*")
    assert {p.name for p in source.rglob("*.cpp")} == {p.name for p in (ROOT / "csrc").rglob("*.cpp")}
    assert names(build(source, "wheel", tmp_path / "wheel")) == names(wheel)


def test_an_installed_wheel_imports_its_kernels_and_says_why_nothing_is_compiled(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # An editable install of this checkout would lend the unpacked wheel its own compiled module.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
    code += "import metatasnet_fast.kernels; from metatasnet_fast import native; print(native.load(), native.reason())"
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None the compiled module was not built (METATASNET_NATIVE=off")


def test_without_a_compiler_the_build_goes_on_and_records_why(checkout: Path, tmp_path: Path) -> None:
    done = run("setup.py", "-q", "build_ext", "--build-lib", tmp_path, cwd=checkout, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    assert "installing WITHOUT the compiled module" in done.stderr
    assert "/nonexistent/c++" in (tmp_path / "metatasnet_fast" / "_native_absent.txt").read_text(encoding="utf-8")


def test_without_a_compiler_a_build_that_was_demanded_fails(checkout: Path, tmp_path: Path) -> None:
    arguments = ("setup.py", "-q", "build_ext", "--build-lib", tmp_path)
    done = run(*arguments, cwd=checkout, CXX="/nonexistent/c++", METATASNET_NATIVE="on")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("metatasnet-fast: the compiled module could not be built")


@pytest.mark.skipif(shutil.which("cmake", path=TOOLS) is None, reason="there is no cmake here")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-DWIN32=1"], "the compiled module cannot be built on Windows: use Linux under WSL"),
        pytest.param(
            ["-DCMAKE_CXX_COMPILER_ID=MSVC", "-DCMAKE_CXX_COMPILER_ID_RUN=1"],
            "the compiler MSVC lacks the vector types of GCC and Clang: set CXX=g++ or CXX=clang++",
            marks=pytest.mark.skipif(
                not any(shutil.which(name, path=TOOLS) for name in ("c++", "g++", "clang++")),
                reason="there is no C++ compiler here",
            ),
        ),
    ],
)
def test_a_platform_that_cannot_compile_is_refused_with_what_to_do(
    checkout: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    code = "import sys, setup; setup.run('cmake', '-S', '.', '-B', *sys.argv[1:])"
    done = run("-c", code, tmp_path / "build", "-DMETATASNET_CUDA=off", *options, cwd=checkout)
    assert done.stderr.strip().endswith(f"BuildError: {reason}")


def test_building_in_place_without_a_module_leaves_the_reason_and_no_older_module(checkout: Path) -> None:
    package = checkout / "metatasnet_fast"
    stale = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_bytes(b"of an earlier build")
    done = run("setup.py", "-q", "build_ext", "--inplace", cwd=checkout, METATASNET_NATIVE="off")
    assert done.returncode == 0, done.stderr
    assert not stale.exists()
    (package / "_native_absent.txt").unlink()


def test_the_build_refuses_an_unknown_mode(checkout: Path) -> None:
    done = run("setup.py", "-q", "build_ext", cwd=checkout, METATASNET_NATIVE="yes")
    assert done.returncode != 0
    assert "METATASNET_NATIVE=yes is not one of auto, on, off" in done.stderr


def test_every_dependency_says_why_it_is_there() -> None:
    lists = re.findall(r"^\w+ = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    requirements = [line for block in lists for line in block.splitlines() if re.search(r'"[\w-]+(\[.*\])?>=', line)]
    assert len(requirements) > 15
    assert [line for line in requirements if "#" not in line] == []


def test_a_checkout_takes_its_kernels_from_the_folder_kernels() -> None:
    link = ROOT / "metatasnet_fast" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"
