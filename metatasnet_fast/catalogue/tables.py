"""The rows of the tables and lists that manifests may be; ``manifest`` is the name that messages give them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from .._extras import require
from ..errors import ConfigError

__all__ = ["Row", "csv_rows", "jsonl_rows", "lines_of", "parquet_rows"]

Row: TypeAlias = dict[str, Any]


def lines_of(text: str) -> Iterable[str]:
    """Not ``splitlines``, which also splits at characters that names and JSON strings may hold, such as U+2028."""
    return io.StringIO(text, newline=None)


def csv_rows(manifest: str, text: str, delimiter: str) -> Iterator[Row]:
    """Rows by the names in the first line. Raises :class:`ConfigError` for what is no such table."""
    # Strict: else a quote that is never closed makes the songs of all lines that follow one name.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if "uri" not in (reader.fieldnames or []):
            raise ConfigError(f"The table {manifest} has no column uri: its first line must name the columns.")
        yield from reader
    except csv.Error as error:
        line = reader.line_num + 1
        raise ConfigError(f"Line {line} of {manifest} cannot be read ({error}): check its quotes.") from None


def jsonl_rows(manifest: str, text: str) -> Iterator[Row]:
    """An object a line; empty lines say nothing. Raises :class:`ConfigError` for any other line."""
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"Line {number} of {manifest} is no JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ConfigError(f"Line {number} of {manifest} is no JSON object with a uri.")
        yield row


def parquet_rows(manifest: str, content: bytes) -> Iterator[Row]:
    """Raises :class:`ConfigError` for what is no such table, :class:`MissingDependencyError` without pyarrow."""
    pyarrow = require("pyarrow", f"The manifest {manifest}")
    require("pyarrow.parquet", f"The manifest {manifest}")
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    except pyarrow.ArrowException as error:
        raise ConfigError(f"The manifest {manifest} is no Parquet file ({error}).") from None
    if "uri" not in file.schema_arrow.names:
        raise ConfigError(f"The table {manifest} has no column uri.")
    wanted = [name for name in ("id", "uri", "duration", "bytes") if name in file.schema_arrow.names]
    try:
        for batch in file.iter_batches(columns=wanted):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The manifest {manifest} is damaged ({reason}): write it anew.") from None
