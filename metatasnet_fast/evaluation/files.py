"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write or replace ``path``, in a folder that exists; what is written on the way there does not stay behind."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # short: the name of a track may fill a file name
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
