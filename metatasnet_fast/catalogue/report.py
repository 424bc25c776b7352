"""The report of a run, beside its ledger: ``report.json`` for machines, ``report.html`` for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .events import RunEnded
from .report_facts import LedgerFacts, facts
from .report_page import page
from .report_pictures import picture_song
from .settings import Settings

if TYPE_CHECKING:
    from .destination import Destination

__all__ = ["write_report"]


def write_report(
    ended: RunEnded, destination: Destination, settings: Settings, price_per_hour: float | None = None
) -> str:
    """Write ``runs/<run>/report.json`` and ``report.html`` to the destination, and return the page's address.

    Memory does not grow with the ledger. Raises ``OSError`` if the destination refuses.
    """
    storage = destination.storage
    ledger = LedgerFacts.of(destination.ledger(ended.run))
    said = facts(ended, ledger, price_per_hour)
    said["destination"] = storage.root
    said["settings"] = settings.to_dict()
    pictures = [song for song in (picture_song(row, storage) for row in ledger.samples) if song is not None]
    folder = f"runs/{ended.run}"
    storage.write(f"{folder}/report.json", (json.dumps(said, indent=1) + "\n").encode())
    storage.write(f"{folder}/report.html", page(said, _labels(settings), pictures).encode(errors="backslashreplace"))
    return f"{storage.root.rstrip('/')}/{folder}/report.html"


def _labels(settings: Settings) -> dict[str, str]:
    return {
        "Model": settings.model,
        "Stems": ", ".join(settings.stems or ["all of the model's"]),
        "Format": settings.format + (f" {settings.subtype}" if settings.subtype else ""),
        "Device": settings.device,
        "Precision": settings.dtype,
    }
