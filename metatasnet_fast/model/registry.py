"""Find models by name: models whose address the library knows, models that a user adds, and models of the Hugging Face
hub.

The file of a model is fetched once, into the user's cache. Its SHA-256 is pinned in ``models.json`` there. This is the
SHA-256 in the library's registry, if there is one, else that of the first download. A file that changes later is
refused. The Hugging Face hub needs the package huggingface_hub (the extra ``hub``).
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from .._extras import require
from .._io import sha256_file, write_atomically
from ..config import MetaTasNetConfig
from ..errors import CheckpointError
from .checkpoints import SETTINGS, WEIGHTS, read_original

__all__ = [
    "add_model", "download", "fetch_model", "fetched_model", "known_models", "model_card", "upload",
]  # fmt: skip

HOME = "METATASNET_HOME"
"""Environment variable that names a folder to use instead of ``~/.cache/metatasnet-fast``."""

PINS = "models.json"
TIMEOUT = 30.0
BLOCK = 1 << 20

Progress = Callable[[int, "int | None"], object]
"""Function that is called with the bytes downloaded so far, and their total (None if the server does not give it)."""


@dataclass(frozen=True)
class KnownModel:
    """A model that can be downloaded, or that the user added. It is a file of the authors' format."""

    name: str
    url: str
    title: str = ""
    bytes: int | None = None
    sha256: str | None = None
    licence: str = "unknown"
    scores: str = "unknown"
    source: str = ""

    @property
    def path(self) -> Path:
        """Return the path of the model's file. The file may not have been fetched yet."""
        return home() / "models" / f"{self.name}.pt"


def home() -> Path:
    """Return the folder in which this library keeps a user's models."""
    if named := os.environ.get(HOME):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metatasnet-fast"


def known_models() -> dict[str, KnownModel]:
    """Return the known models by name, with the checksums that are pinned.

    Raises:
        CheckpointError: if the user's ``models.json`` is damaged.
    """
    text = resources.files("metatasnet_fast").joinpath("assets/models/registry.json").read_text("utf-8")
    models = {name: KnownModel(name, **entry) for name, entry in json.loads(text).items()}
    for name, entry in _pins().items():
        models[name] = replace(models[name], sha256=entry["sha256"]) if name in models else KnownModel(name, **entry)
    return models


def fetched_model(name: str) -> Path | None:
    """Return the path of a known model's file; None for an unknown name.

    Raises:
        CheckpointError: if the model is known, but its file is not on this machine.
    """
    model = known_models().get(name)
    if model is None:
        return None
    if not model.path.is_file():
        raise CheckpointError(
            f"The model {name} is not on this machine: `metatasnet-fast models fetch {name}` fetches it."
        )
    return model.path


def add_model(name: str, location: str, sha256: str | None = None, progress: Progress | None = None) -> KnownModel:
    """Give a file or an address a name, fetch the file, and return the model.

    Args:
        name: letters, digits, dots, dashes and underscores.
        location: a file of the authors' format, or an http or https address of such a file.
        sha256: the SHA-256 that the file must have; by default that of the fetched file is pinned.
        progress: function that is called while the file is downloaded.

    Raises:
        CheckpointError: for a name that is taken or invalid, or a file that is no checkpoint; also as
            :func:`fetch_model`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise CheckpointError(f"{name!r} cannot name a model: use letters, digits, dots, dashes and underscores.")
    if name in known_models():
        raise CheckpointError(f"There is a model {name} already: choose another name.")
    if not re.match(r"https?://", location):
        path = Path(location)
        if not path.is_file():
            raise CheckpointError(f"There is no file {location}: name one, or an http address.")
        read_original(path)
        location = path.resolve().as_uri()
    return _fetch(KnownModel(name, location, sha256=sha256), progress)


def fetch_model(name: str, progress: Progress | None = None) -> KnownModel:
    """Download a known model, and return it. An interrupted download resumes.

    Raises:
        CheckpointError: for an unknown name, a dead link, no network, or a file with another checksum than the pinned one.
    """
    models = known_models()
    if name not in models:
        raise CheckpointError(f"No model {name} is known; choose from {', '.join(models)}, or add it.")
    return _fetch(models[name], progress)


def _fetch(model: KnownModel, progress: Progress | None) -> KnownModel:
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        if not model.path.is_file():
            part = model.path.with_suffix(".part")
            _download(model, part, progress)
            _check(model, part)
            os.replace(part, model.path)
        digest = _check(model, model.path)
        fetched = replace(model, sha256=digest, bytes=model.path.stat().st_size)
        entry = {key: value for key, value in asdict(fetched).items() if key != "name"}
        write_atomically(home() / PINS, json.dumps({**_pins(), model.name: entry}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{model.name} cannot be fetched from {model.url} ({_reason(error)}). Check the network and the address, or get "
            "the file another way and `metatasnet-fast models add` it."
        ) from error
    return fetched


def _download(model: KnownModel, part: Path, progress: Progress | None) -> None:
    """Download the bytes that the file ``part`` lacks. If the server cannot send a part of a file, download
    everything."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(model.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: the part is as long as the model's file already, or longer
            raise
        part.unlink()
        return _download(model, part, progress)
    with answer, part.open("ab" if getattr(answer, "status", None) == 206 else "wb") as file:
        length = answer.headers.get("Content-Length")
        total = None if length is None else file.tell() + int(length)
        while block := answer.read(BLOCK):
            file.write(block)
            if progress is not None:
                progress(file.tell(), total)
        if total is not None and file.tell() < total:
            raise OSError(
                f"the connection ended after {file.tell()} of {total} bytes; the same command goes on from there"
            )


def _check(model: KnownModel, path: Path) -> str:
    digest = sha256_file(path)
    if model.sha256 is not None and digest != model.sha256:
        if path != model.path:
            path.unlink()
        raise CheckpointError(
            f"{path} is damaged or another file: SHA-256 {digest}, pinned {model.sha256}. Delete it and fetch it again; if "
            f"the model has changed on purpose, remove its entry from {home() / PINS}."
        )
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        path.unlink()
        raise CheckpointError(
            f"{model.url} answers with a web page, not with a model: the link is dead, or needs a browser."
        )
    return digest


def _pins() -> dict[str, Any]:
    path = home() / PINS
    try:
        found = json.loads(path.read_text("utf-8"))
        if not all("sha256" in entry and "url" in entry for entry in found.values()):
            raise ValueError("an entry lacks url or sha256")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): mend or remove it.") from error
    return dict(found)


def _reason(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code}, {error.reason}"
    return str(getattr(error, "reason", None) or error)


def download(name: str, revision: str | None, offline: bool) -> Path:
    """Return the folder of the hub's local cache that holds a checkpoint. If the checkpoint is not there, fetch it.

    Args:
        name: hub id ``owner/name``.
        revision: branch, tag or commit; None for the default branch.
        offline: do not fetch.

    Raises:
        CheckpointError: if there is no checkpoint of this name, or it cannot be fetched.
        MissingDependencyError: without huggingface_hub.
    """
    snapshot_download = require("huggingface_hub", f"Loading {name} from the hub").snapshot_download
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[SETTINGS, WEIGHTS], local_files_only=offline)
        )
    except Exception as error:  # the hub client raises many types, from several libraries
        hub = "the hub's local cache does not hold it" if offline else "it cannot be fetched from the hub"
        raise CheckpointError(f"There is no file or folder {name}, and {hub} ({_first_line(error)}).") from error


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Upload a checkpoint folder with its model card to the hub, and return its address there.

    Raises:
        CheckpointError: if the hub refuses, or cannot be reached.
        MissingDependencyError: without huggingface_hub.
    """
    api = require("huggingface_hub", f"Uploading {name} to the hub").HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub client raises many types, from several libraries
        raise CheckpointError(
            f"{name} cannot be uploaded ({_first_line(error)}). Log in with `hf auth login`, and check the name."
        ) from error
    return address


def model_card(
    name: str,
    config: MetaTasNetConfig,
    *,
    licence: str,
    scores: Mapping[str, float],
    dataset: str,
    text: str = "",
) -> str:
    """Return a model card in Markdown: front matter that the hub reads, how to use the model, and the scores.

    Args:
        name: ``owner/name``.
        licence: name of the licence as the hub spells it, such as ``mit`` or ``cc0-1.0``.
        scores: scores in dB by metric and stem, such as ``{"SDR vocals": 6.4}``.
        dataset: name of the data set on which the scores were measured.
        text: further text in Markdown, as on the data, the training and the model's weaknesses.

    Raises:
        CheckpointError: for scores without a data set.
    """
    if scores and not dataset:
        raise CheckpointError("The scores of a model card need the name of the data set: give dataset.")
    hub = require("huggingface_hub", "A model card")
    results = [
        hub.EvalResult(
            task_type="audio-to-audio",
            task_name="music source separation",
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=dataset,
            metric_type=metric,
            metric_value=round(value, 3),
        )
        for metric, value in scores.items()
    ]
    data = hub.ModelCardData(
        license=licence,
        library_name="metatasnet-fast",
        pipeline_tag="audio-to-audio",
        tags=["music-source-separation", "meta-tasnet"],
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    rows = [f"| {metric} | {value:.2f} |" for metric, value in scores.items()]
    table = ["", f"| on {dataset} | dB |", "|---|---:|", *rows] if rows else []
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            f"# {name.rpartition('/')[2]}",
            "",
            f"A Meta-TasNet that separates music into {', '.join(config.instruments)}, at {config.output_rate} Hz.",
            "",
            f"    metatasnet-fast separate song.mp3 --model {name}",
            "",
            "```python",
            "from metatasnet_fast import Separator",
            "",
            f'separation = Separator("{name}").separate_file("song.mp3")',
            "```",
            *table,
            *(["", text.strip()] if text.strip() else []),
            "",
        ]
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
