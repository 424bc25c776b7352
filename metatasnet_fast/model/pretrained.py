"""Load and save networks, also by the methods of the Hugging Face convention, and find checkpoints by name."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..config import MetaTasNetConfig
from ..errors import CheckpointError
from .checkpoints import (
    SETTINGS,
    WEIGHTS,
    Checkpoint,
    check_sha256,
    config_of,
    load_state,
    read_folder,
    read_original,
    write_folder,
    write_original,
)
from .registry import download, fetched_model, known_models, model_card, upload

if TYPE_CHECKING:
    from typing_extensions import Self

    from .network import MultiTasNet

Network = TypeVar("Network", bound=nn.Module)

__all__ = [
    "PretrainedMixin", "bundled_models", "convert", "default_model", "load_checkpoint", "locate", "means_bundled",
    "read_checkpoint",
]  # fmt: skip


class PretrainedMixin(nn.Module):
    """Mixin that adds ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` to a network."""

    args: Any

    def save_pretrained(self, folder: str | os.PathLike[str], half: bool = False) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder.

        Args:
            half: store the learned weights in float16.

        Raises:
            CheckpointError: if the folder cannot be written.
            MissingDependencyError: without safetensors.
        """
        args = self.args.to_namespace() if hasattr(self.args, "to_namespace") else self.args
        write_folder(Checkpoint(self.state_dict(), args), folder, half)

    def push_to_hub(
        self,
        name: str,
        *,
        licence: str,
        scores: Mapping[str, float] | None = None,
        dataset: str = "",
        text: str = "",
        private: bool = False,
        half: bool = False,
        message: str = "Upload a Meta-TasNet",
    ) -> str:
        """Upload the network with a model card to the Hugging Face hub, and return its address.

        Args:
            name: ``owner/name`` of the repository, which is created if it does not exist.
            licence, scores, dataset, text: content of the card, see :func:`.registry.model_card`.
            private: make the repository private if it is created.
            half: store the learned weights in float16.
            message: message of the commit.

        Raises:
            CheckpointError: if the hub refuses, or for scores without a data set.
            MissingDependencyError: without huggingface_hub.
        """
        config = self.args if isinstance(self.args, MetaTasNetConfig) else MetaTasNetConfig.from_namespace(self.args)
        card = model_card(name, config, licence=licence, scores=scores or {}, dataset=dataset, text=text)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            self.save_pretrained(folder, half)
            (folder / "README.md").write_text(card, "utf-8")
            return upload(folder, name, private=private, message=message)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        sha256: str | None = None,
        offline: bool = False,
    ) -> Self:
        """Load a network, and return it in evaluation mode.

        Args:
            name: a checkpoint folder, the name of a bundled model, or a hub id ``owner/name``.
            revision: branch, tag or commit of a hub id.
            sha256: the SHA-256 that the weights must have; by default the one in ``config.json``.
            offline: use only what the hub's local cache holds.

        Raises:
            CheckpointError: if there is no such model, or it is damaged or of another network.
            MissingDependencyError: without safetensors, or huggingface_hub for a hub id.
        """
        with _readable(name):
            folder = _locate(name, revision, offline)
            checkpoint = read_folder(folder, sha256)
        return _build(cls, checkpoint, folder)


def load_checkpoint(
    path: str | os.PathLike[str], *, revision: str | None = None, sha256: str | None = None, offline: bool = False
) -> MultiTasNet:
    """Load a network from a file of the authors' program, or from what :meth:`MultiTasNet.from_pretrained` accepts.

    The network is in evaluation mode, on the CPU, in float32. Loading never runs code from the file.

    Args:
        path: a file, a checkpoint folder, the name of a bundled or fetched model, or a hub id ``owner/name``.
        revision, offline: as in :meth:`MultiTasNet.from_pretrained`; not used for a file of the authors.
        sha256: the SHA-256 that the weights of a folder, or a file of the authors, must have.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged, unsafe or of another network.
        MissingDependencyError: without safetensors, for a folder; without huggingface_hub, for a hub id.
    """
    from .network import MultiTasNet

    return _build(MultiTasNet, *read_checkpoint(path, revision, sha256, offline))


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], half: bool = False) -> None:
    """Convert between a file of the authors' program (``.pt``, ``.pth``, or no suffix) and a checkpoint folder.

    Weights, arguments, optimiser, epoch and steps are kept, and a conversion there and back is exact. With ``half`` the
    weights of a folder are rounded and the optimiser is left out: the folder is for separation.

    Args:
        source: a checkpoint, as for :func:`load_checkpoint`.
        target: a path that ends in ``.pt`` or ``.pth`` for the authors' format; any other path becomes a folder.
        half: store the learned weights of a folder in float16, without the optimiser's state.

    Raises:
        CheckpointError: as :func:`load_checkpoint`, or if the target cannot be written.
    """
    from .network import MultiTasNet

    checkpoint, origin = read_checkpoint(source, offline=True)
    _build(MultiTasNet, checkpoint, origin)
    if Path(target).suffix in (".pt", ".pth"):
        write_original(checkpoint, target)
    else:
        write_folder(replace(checkpoint, optimizer=None) if half else checkpoint, target, half)


def means_bundled(name: str | os.PathLike[str]) -> bool:
    """Return whether a name means a bundled model: there is one of this name, and no checkpoint folder at this path.

    A folder of this name that holds no checkpoint does not count: stems may have been written to it.
    """
    return str(name) in bundled_models() and not (Path(name) / SETTINGS).is_file()


def bundled_models() -> dict[str, Path]:
    """Return the folders of the models that come with the library, by name."""
    root = Path(str(resources.files("metatasnet_fast"))) / "assets" / "models"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{SETTINGS}"))}


def default_model() -> str:
    """Return the name of the model that is used if the user names none.

    Raises:
        CheckpointError: if no model comes with this installation.
    """
    names = list(bundled_models())
    if not names:
        raise CheckpointError(
            "No model comes with this installation: name a checkpoint file or folder, on the command line with --model."
        )
    return names[0]


def locate(path: str | os.PathLike[str], revision: str | None = None, offline: bool = False) -> Path:
    """Return the path of the checkpoint file or folder that :func:`load_checkpoint` would read. A hub id is downloaded.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    with _readable(path):
        if not Path(path).exists() and not means_bundled(path) and (known := fetched_model(str(path))):
            path = known
        if Path(path).is_file():
            return Path(path).parent if Path(path).name in (SETTINGS, WEIGHTS) else Path(path)
        return _locate(path, revision, offline)


def read_checkpoint(
    path: str | os.PathLike[str], revision: str | None = None, sha256: str | None = None, offline: bool = False
) -> tuple[Checkpoint, Path]:
    """Read a checkpoint, and return it with the path of its file or folder; the arguments are those of
    :func:`load_checkpoint`."""
    place = locate(path, revision, offline)
    with _readable(path):
        if place.is_dir():
            return read_folder(place, sha256), place
        if sha256:
            check_sha256(place, sha256)
        return read_original(place), place


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` in the block into a :class:`CheckpointError`, as for a name that is too long, or a missing
    permission. Also raise :class:`CheckpointError` if ``path`` is no path at all."""
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"A checkpoint is a file, a folder or a name, not {type(path).__name__}.")
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its permissions."
        ) from error


def _build(cls: Callable[[Any], Network], checkpoint: Checkpoint, origin: Path) -> Network:
    config_of(checkpoint, origin)
    with torch.inference_mode(False):  # a network made in that mode could never be trained
        network = cls(checkpoint.args)
        load_state(network, checkpoint.state_dict, origin)
    network.eval()
    return network


def _locate(name: str | os.PathLike[str], revision: str | None, offline: bool) -> Path:
    bundled = bundled_models()
    if means_bundled(name):
        return bundled[str(name)]
    if Path(name).is_dir():
        return Path(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and Path(name).suffix not in (".pt", ".pth"):
        return download(str(name), revision, offline)
    known = ", ".join([*bundled, *known_models()])
    hint = (
        " `metatasnet-fast models fetch authors` fetches that of the authors."
        if Path(name).name == "best_model.pt"
        else ""
    )
    raise CheckpointError(
        f"There is no checkpoint {str(name)!r}: give a file, a folder or a known name. Models: {known}.{hint}"
    )
