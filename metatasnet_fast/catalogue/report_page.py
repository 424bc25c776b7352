"""The report as one HTML page: it needs no network and no other file."""

from __future__ import annotations

import base64
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from .. import __version__
from .display import clock_text

__all__ = ["Pictures", "page"]

STAGE_NAMES = {
    "read": "reading, decoding",
    "device": "the device",
    "separate": "songs with the device",
    "write": "encoding, writing",
}


class _Template(string.Template):
    delimiter = "@@"


@dataclass(frozen=True)
class Pictures:
    """PNG files of one song, by what they show."""

    song: str
    remark: str
    images: Mapping[str, bytes]


def page(facts: Mapping[str, Any], settings: Mapping[str, str], pictures: Sequence[Pictures] = ()) -> str:
    """HTML of :func:`~.report_facts.facts`; ``settings`` are short labels with short texts."""
    sections = [_stages(facts), _timeline(facts["timeline"]), _failures(facts["failures"])]
    sections += [_warnings(facts["warnings"]), _pictures(pictures)]
    template = resources.files("metatasnet_fast").joinpath("assets/catalogue/report.html").read_text("utf-8")
    return _Template(template).substitute(
        title=escape(f"Catalogue run {facts['run']}"),
        lead=escape(_lead(facts)),
        figures=_list(_figures(facts)),
        facts=_list({**settings, **_resources(facts)}),
        sections="".join(section for section in sections if section),
        footer=escape(
            f"Made by metatasnet-fast {__version__}. The numbers are in report.json, every song in the ledger."
        ),
    )


def _lead(facts: Mapping[str, Any]) -> str:
    songs = facts["songs"]
    parts = [f"{songs['done']:,} of {songs['listed']:,} songs separated"]
    if songs["done_before"]:
        parts.append(f"{songs['done_before']:,} were done before")
    parts.append(f"{songs['failed']:,} failed")
    if songs["not_tried"]:
        parts.append(f"{songs['not_tried']:,} were not tried, since the run was stopped")
    return "; ".join(parts) + "."


def _figures(facts: Mapping[str, Any]) -> dict[str, str]:
    figures = {
        "Audio": f"{facts['audio_hours']:,.2f} h",
        "Time": clock_text(facts["wall_seconds"]),
        "Speed": f"{facts['real_time_factor']:,.1f} × real time",
        "Songs an hour": f"{facts['songs_per_hour']:,.0f}",
        "Device busy": f"{facts['device_busy_share']:.0%}",
    }
    if facts["bottleneck"]:
        figures["Bottleneck"] = STAGE_NAMES.get(facts["bottleneck"], facts["bottleneck"])
    if facts["cost"]:
        figures["Cost of 1,000 songs"] = _money(facts["cost"]["per_1000_songs"])
    return figures


def _resources(facts: Mapping[str, Any]) -> dict[str, str]:
    result = {
        "Processor time": clock_text(facts["cpu_seconds"]),
        "Peak memory of a worker": f"{facts['peak_memory'] / 2**20:,.0f} MiB",
        "Read": f"{facts['bytes_in'] / 1e9:,.2f} GB",
        "Written": f"{facts['bytes_out'] / 1e9:,.2f} GB",
    }
    if facts["cost"]:
        result["Cost"] = _money(facts["cost"]["total"])
        if facts["cost"]["price_per_hour"] is not None:
            result["Price of an hour"] = _money(facts["cost"]["price_per_hour"])
    return result


def _stages(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, stage in facts["stages"].items():
        share = stage["busy_share"]
        rows.append(
            f"<tr{' class=first' if name == facts['bottleneck'] else ''}><td>{escape(STAGE_NAMES.get(name, name))}</td>"
            f'<td class="bar"><span style="width:{100 * min(1.0, share):.1f}%"></span></td>'
            f'<td class="number">{share:.0%} busy</td><td class="number">{clock_text(stage["seconds"])}</td></tr>'
        )
    head = "<tr><th>Stage</th><th></th><th>Share of its capacity</th><th>Time, summed over songs</th></tr>"
    return _section("Where the time goes", f"<table>{head}{''.join(rows)}</table>") if rows else ""


def _timeline(timeline: Mapping[str, Any]) -> str:
    values = [value / timeline["step_seconds"] for value in timeline["audio_seconds"]]
    if len(values) < 3 or not max(values) > 0:
        return ""
    width = 1000 / len(values)
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{100 - 100 * v / max(values):.2f}" width="{max(0.8 * width, 0.5):.2f}" '
        f'height="{100 * v / max(values):.2f}"/>'
        for i, v in enumerate(values)
    )
    label = f"Steps of {timeline['step_seconds']:g} s; the highest bar is {max(values):,.1f} × real time."
    chart = (
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{bars}</svg>'
    )
    return _section("Songs finished over time, by length", f"{chart}<p class=soft>{escape(label)}</p>")


def _failures(failures: Mapping[str, Any]) -> str:
    if not failures:
        return ""
    head = "<tr><th>Type</th><th>Songs</th><th>What to do</th><th>Examples</th></tr>"
    rows = []
    for name, failure in failures.items():
        examples = "".join(
            f"<div><code>{escape(example['id'])}</code> <span class=soft>{escape(example['error'] or '')}</span></div>"
            for example in failure["examples"]
        )
        rows.append(
            f'<tr><td class="type">{escape(name)}</td><td class="number">{failure["songs"]:,}</td>'
            f"<td>{escape(failure['hint'])}</td><td>{examples}</td></tr>"
        )
    return _section("Failures", f"<table>{head}{''.join(rows)}</table>")


def _warnings(warnings: Mapping[str, Any]) -> str:
    if not warnings["number"]:
        return ""
    rows = "".join(
        f"<div><code>{escape(e['id'])}</code> <span class=soft>{escape(e['warning'])}</span></div>"
        for e in warnings["examples"]
    )
    return _section(f"Warnings: {warnings['number']:,}", rows)


def _pictures(pictures: Sequence[Pictures]) -> str:
    if not pictures:
        return ""
    songs = []
    for song in pictures:
        figures = "".join(
            f'<figure><img alt="Spectrogram of {escape(name)}" src="data:image/png;base64,'
            f'{base64.b64encode(png).decode("ascii")}"><figcaption>{escape(name)}</figcaption></figure>'
            for name, png in song.images.items()
        )
        songs.append(f"<h3>{escape(song.song)} <span class=soft>{escape(song.remark)}</span></h3>")
        songs.append(f'<div class="pictures">{figures}</div>')
    return _section("A sample", "".join(songs))


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n<div class=card>{content}</div>\n"


def _list(entries: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in entries.items())


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
