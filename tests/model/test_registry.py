"""Models by name are fetched once, go on after a cut, and are held to the checksum of their first download."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import load_checkpoint
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import CheckpointError
from metatasnet_fast.model import registry
from metatasnet_fast.model.registry import add_model, fetch_model, known_models
from tests.support import GOLDEN

FILE = GOLDEN / "original_checkpoint.pt"


class Server(ThreadingHTTPServer):
    content = FILE.read_bytes()
    cut: int | None = None
    ranges = True
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/model.pt":
            return self.send_error(404)
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(self.server.content):
            return self.send_error(416)
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.HOME, str(tmp_path / "home"))
    return tmp_path / "home"


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/model.pt"


def test_a_model_that_was_added_is_loaded_by_its_name(server: Server) -> None:
    model = add_model("mine", url(server))
    assert model.path.read_bytes() == FILE.read_bytes()
    loaded, expected = load_checkpoint("mine").state_dict(), load_checkpoint(FILE).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    fetch_model("mine")
    assert len(server.asked) == 1  # what is here is not fetched again


def test_a_file_is_added_without_a_network() -> None:
    assert add_model("mine", str(FILE)).path.read_bytes() == FILE.read_bytes()


def test_a_file_that_is_no_checkpoint_is_not_added(tmp_path: Path) -> None:
    other = tmp_path / "song.wav"
    other.write_bytes(b"RIFF0000WAVE")
    with pytest.raises(CheckpointError, match=r"song\.wav"):
        add_model("mine", str(other))
    assert "mine" not in known_models()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_goes_on(ranges: bool, server: Server) -> None:
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(CheckpointError, match="the same command goes on"):
        add_model("mine", url(server))
    server.cut = None
    assert add_model("mine", url(server)).path.read_bytes() == FILE.read_bytes()
    assert server.asked == [None, "bytes=1000-"]


def test_a_part_that_is_whole_already_is_no_obstacle(server: Server, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "mine.part").write_bytes(FILE.read_bytes())
    assert add_model("mine", url(server)).path.read_bytes() == FILE.read_bytes()


def test_another_file_than_the_first_is_refused(server: Server) -> None:
    path = add_model("mine", url(server)).path
    path.unlink()
    server.content = b"another"
    with pytest.raises(CheckpointError, match="damaged or another file.*pinned"):
        fetch_model("mine")
    assert not path.exists() and not path.with_suffix(".part").exists()
    path.write_bytes(b"changed by hand")
    with pytest.raises(CheckpointError, match="damaged or another file"):
        fetch_model("mine")


def test_a_checksum_that_is_asked_for_is_verified(server: Server) -> None:
    with pytest.raises(CheckpointError, match="pinned 00"):
        add_model("mine", url(server), sha256="00")


def test_a_web_page_in_place_of_the_model_is_a_dead_link(server: Server) -> None:
    server.content = b"\n<!DOCTYPE html><html>gone</html>"
    with pytest.raises(CheckpointError, match="answers with a web page"):
        add_model("mine", url(server))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/model.pt", "absent.pt"])
def test_what_cannot_be_reached_is_one_sentence(address: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched|There is no file"):
        add_model("mine", address)


def test_a_page_that_is_not_there_is_one_sentence(server: Server) -> None:
    with pytest.raises(CheckpointError, match="404"):
        add_model("mine", url(server) + "x")


@pytest.mark.parametrize("name", ["authors", "a/b", "", "-x"])
def test_a_name_that_is_taken_or_none_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        add_model(name, str(FILE))


def test_a_known_model_that_is_not_here_says_how_it_is_fetched() -> None:
    assert known_models()["authors"].url.startswith("https://")
    with pytest.raises(CheckpointError, match="models fetch authors"):
        load_checkpoint("authors")
    with pytest.raises(CheckpointError, match="models fetch authors"):
        load_checkpoint("best_model.pt")
    with pytest.raises(CheckpointError, match="No model no one is known"):
        fetch_model("no one")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {}}'])
def test_a_damaged_record_is_one_sentence(text: str, home: Path) -> None:
    home.mkdir()
    (home / "models.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"models\.json is damaged"):
        known_models()


def test_the_command_lists_fetches_and_adds(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "open-small: comes with this installation, used by default" in listed and "models fetch authors" in listed
    assert main(["models", "add", "mine", url(server)]) == 0
    assert "use it as --model mine" in capsys.readouterr().out
    assert main(["models", "fetch", "mine"]) == 0
    capsys.readouterr()
    for argv in (["fetch", "mine", "--json"], ["--json", "fetch", "mine"], ["add", "other", url(server), "--json"]):
        assert main(["models", *argv]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["name"] in argv and found["here"] and not found["bundled"]
        assert Path(found["path"]).stat().st_size == found["bytes"] and len(found["sha256"]) == 64
    assert main(["models", "--json"]) == 0
    assert main(["models", "fetch", "no one"]) == 2
