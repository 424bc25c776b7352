"""``metatasnet-fast catalogue status`` and ``verify``: how far a catalogue is, and whether what lies there holds."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..catalogue.survey import Finding

__all__ = ["run_status", "run_verify"]


def run_status(args: argparse.Namespace) -> int:
    """Count the songs by state; return exit code 0."""
    from ..catalogue.destination import Destination
    from ..catalogue.survey import survey

    found = survey(Destination(args.destination))
    if not (found.done or found.damaged_results or found.runs):
        raise _nothing(args.destination)
    if args.json:
        print(json.dumps(found.to_dict()))
        return 0
    print(
        f"{found.done} songs done: {found.audio_seconds / 3600:.2f} hours of audio, {found.bytes / 1e9:.2f} GB of stems"
    )
    for name, count in found.models.most_common():
        print(f"  {count} with {name}")
    if found.damaged_results:
        print(f"{found.damaged_results} results are damaged; the next run makes them again")
    print(f"{len(found.failures)} songs failed" + (":" if found.failures else ""))
    for outcome in found.failures:
        print(f"  {outcome.id}: {outcome.failure.value if outcome.failure else ''}: {outcome.error} {outcome.hint}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check the outputs; return exit code 3 if anything is wrong."""
    from ..catalogue.destination import Destination
    from ..catalogue.manifest import parse_shard
    from ..catalogue.survey import Finding, verify

    if not 0 < args.sample <= 1:
        raise ConfigError(f"--sample must be a share above 0 and at most 1, got {args.sample:g}.")
    destination, shard = Destination(args.destination), parse_shard(args.shard)
    good = 0
    findings: list[Finding] = []
    for found in verify(destination, args.repair, shard, args.sample):
        if isinstance(found, Finding):
            findings.append(found)
            if args.json:
                print(json.dumps({"folder": found.folder, "problem": found.problem}), flush=True)
            else:
                print(f"{found.folder}: {found.problem}", flush=True)
        else:
            good += 1
    if not good and not findings and not any(destination.ledger_rows()):
        raise _nothing(args.destination)
    if args.json:
        print(json.dumps({"verified": good, "findings": len(findings), "repaired": bool(args.repair and findings)}))
    else:
        advice = (
            "the next run makes them again" if args.repair else "--repair makes way for the next run to make them again"
        )
        print(f"{good} songs verified, {len(findings)} findings" + (f"; {advice}" if findings else ""))
    return 3 if findings else 0


def _nothing(destination: str) -> ConfigError:
    return ConfigError(f"There is no catalogue at {destination}: name the DEST of `catalogue run`.")
