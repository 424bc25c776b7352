"""Import optional packages where they are needed, and find their versions.

If a package is missing, the error says in one sentence what to do.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from .errors import MissingDependencyError

__all__ = ["require", "version_of"]

DISTRIBUTIONS = {
    "fsspec.core": "fsspec",
    "log_wmse_audio_quality": "log-wmse-audio-quality",
    "torch.utils.tensorboard": "tensorboard",
}
"""Names of packages for pip, if they differ from the first part of the module's name."""


def require(module: str, purpose: str) -> Any:
    """Import an optional module.

    Args:
        module: its full name, such as ``safetensors.torch``.
        purpose: what needs the module, such as ``Reading a checkpoint folder``: the subject of the error's sentence.

    Raises:
        MissingDependencyError: if the module cannot be imported; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = DISTRIBUTIONS.get(module, module.split(".")[0])
        missing = error.name is None or error.name.split(".")[0] == module.split(".")[0]
        reason = "" if missing else f" (which cannot be imported here: {error})"
        raise MissingDependencyError(
            f"{purpose} needs the package {package}{reason}; `pip install {package}` installs it."
        ) from error


def version_of(package: str) -> str | None:
    """Return the version of an installed package, by its name for pip; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
