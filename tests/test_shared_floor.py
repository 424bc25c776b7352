"""Atomic files, locks, checksums, missing packages, lines and bars: what every part of the package uses."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from metatasnet_fast import MultiTasNet
from metatasnet_fast._extras import require
from metatasnet_fast._io import (
    describe_os_error,
    model_checksum,
    reporting_write_errors,
    same_checksum,
    try_lock,
    write_atomically,
    writing,
)
from metatasnet_fast._terminal import ProgressBar, say
from metatasnet_fast.errors import ConfigError, MissingDependencyError
from tests.support import TINY


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)  # about as long as a file system allows
    write_atomically(path, "old")
    with pytest.raises(RuntimeError, match="halfway"), writing(path) as file:
        file.write(b"half")
        raise RuntimeError("halfway")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_full_disk_is_named_through_the_errors_of_libraries() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as error:
        assert describe_os_error(error) == "no space left on the disk"
    assert describe_os_error(OSError(13, "Permission denied")) == "Permission denied"


def test_write_errors_become_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"gone cannot be written \(No such file"),
        reporting_write_errors(tmp_path / "gone", ConfigError),
    ):
        write_atomically(tmp_path / "gone" / "file", "text")


def test_one_file_has_one_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("ab") as one, (tmp_path / "lock").open("ab") as other:
        assert try_lock(one) is True
        assert try_lock(other) is False
    with (tmp_path / "lock").open("ab") as third:
        assert try_lock(third) is True


def test_a_models_checksum_is_of_values_dtypes_and_configuration() -> None:
    network = MultiTasNet(TINY)
    state = network.state_dict()
    checksum = model_checksum(TINY, state)
    assert checksum == model_checksum(TINY, dict(reversed(state.items())))
    assert checksum != model_checksum(TINY, {name: value.bfloat16() for name, value in state.items()})
    state["stages.0.mask.prelu_1.weight"] = state["stages.0.mask.prelu_1.weight"] + 1
    assert checksum != model_checksum(TINY, state)
    assert checksum.startswith("1:") and same_checksum(checksum, checksum[2:])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        MissingDependencyError,
        match="^Reading audio needs the package soundfile; `pip install soundfile` installs it.$",
    ):
        require("soundfile", "Reading audio")


def test_a_package_that_is_there_and_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="No module named 'no_such_package'"):
        require("broken_package", "This")


@pytest.mark.parametrize("stream", ["none", "closed", "full"])
def test_output_that_cannot_be_written_never_stops_the_work(
    stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("metatasnet_fast._terminal._reported", False)
    out: io.TextIOWrapper | None = None
    if stream != "none":
        if not Path("/dev/full").exists():
            pytest.skip("needs a device that is always full")
        out = Path("/dev/full").open("w")
        if stream == "closed":
            out.detach().close()
    say("line", out)
    say("line", out)
    err = capsys.readouterr().err
    assert err.count("output cannot be written") == (0 if stream == "none" else 1)


def test_a_bar_without_standard_error_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar("song", "s", 10) as bar:
        bar.update(5, "fast")
        assert not bar.is_bar


def test_without_a_terminal_progress_is_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("metatasnet_fast._terminal.LINE_SECONDS", 0.0)
    with ProgressBar("song", "s", 10) as bar:
        bar.update(5, "fast")
    assert capsys.readouterr().err == "song: 5 of 10 s, fast\n"
