"""The parts that the decorators' cards are made of: pages, facts, tables and a timeline, as HTML and SVG.

A page needs nothing from the network and no script, but for the three lines that let Metaflow's viewer put in
what changed while the task runs. Text of users is escaped by every function here; what these return is `Html`
and goes into the next one as it is.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

__all__ = [
    "Html",
    "Mark",
    "code",
    "count_text",
    "duration_text",
    "facts",
    "heading",
    "metadata_text",
    "note",
    "notice",
    "page",
    "paragraph",
    "seconds_of",
    "section",
    "size_text",
    "table",
    "tiles",
    "time_text",
    "timeline",
]

_TOKEN = "[METAFLOW_RELOAD_TOKEN]"
"""Metaflow puts its own token here, by which the viewer sees whether an update belongs to the page."""

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#be185d")

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; padding: 1.5rem; background: #fff; color: #1f2937; max-width: 72rem;
  font: 15px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.sub { color: #6b7280; margin: .2rem 0 0; overflow-wrap: anywhere; }
.state { display: inline-block; padding: 0 .6em; border-radius: 1em; font-size: .85rem; vertical-align: middle; }
.state.running { background: #dbeafe; color: #1e40af; }
.state.done { background: #d1fae5; color: #065f46; }
.state.failed { background: #fee2e2; color: #991b1b; }
code { font: .88em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0 0; }
dt { color: #6b7280; }
dd { margin: 0; overflow-wrap: anywhere; }
.notice { padding: .5rem .8rem; border-left: 4px solid #d97706; background: #fffbeb; margin: .6rem 0;
  overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: .6rem 0; }
.tile { border: 1px solid #e5e7eb; border-radius: .5rem; padding: .5rem .9rem; min-width: 7rem; }
.tile b { display: block; font-size: 1.25rem; font-weight: 600; }
.tile span { color: #6b7280; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: #6b7280; font-weight: 500; font-size: .85rem; white-space: nowrap; }
th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.text { overflow-wrap: anywhere; min-width: 7rem; }
td.short { white-space: nowrap; }
svg { display: block; width: 100%; min-width: 52rem; height: auto; }
svg text { fill: #6b7280; font-size: 12px; }
.legend { color: #6b7280; font-size: .85rem; display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
.legend i.hollow { border: 1.5px solid #6b7280; box-sizing: border-box; }
.note { color: #6b7280; font-size: .85rem; margin: .4rem 0; }
"""


class Html(str):
    """Markup that is finished; any other string is escaped where it goes into a page."""

    __slots__ = ()


def _html(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def page(title: str, parts: Iterable[str], *, live: bool) -> str:
    """A whole page. With `live`, the viewer replaces its content by what a card's `refresh` returns: see
    `section`.

    `title` is that of the window; `parts` come one below the other.
    """
    script = ""
    if live:
        script = (
            f'<script>var METAFLOW_RELOAD_TOKEN = "{_TOKEN}";'
            "var shown; window.metaflow_card_update = function (data) {"
            # Most updates bring nothing new, and what somebody selected is to stay selected.
            "if (data.content !== shown) "
            '{ document.getElementById("content").innerHTML = shown = data.content; } return true; };</script>'
        )
    else:
        script = f'<script>var METAFLOW_RELOAD_TOKEN = "{_TOKEN}";</script>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{script}</head>"
        f'<body><main id="content">{"".join(_html(part) for part in parts)}</main></body></html>'
    )


def section(title: str, *parts: str) -> Html:
    """A headline and what lies below it."""
    return Html(f"<section><h2>{_html(title)}</h2>{''.join(_html(part) for part in parts)}</section>")


def heading(title: str, below: str, state: str) -> Html:
    """The head of a page: a title, a line below it, and how the task does: `running`, `done` or `failed`."""
    return Html(
        f'<header><h1>{_html(title)} <span class="state {_html(state)}">{_html(state)}</span></h1>'
        f'<p class="sub">{_html(below)}</p></header>'
    )


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{_html(text)}</p>")


def note(text: str) -> Html:
    """A line of small print."""
    return Html(f'<p class="note">{_html(text)}</p>')


def notice(text: str) -> Html:
    """A line that stands out: something went wrong."""
    return Html(f'<p class="notice" role="alert">{_html(text)}</p>')


def code(text: str) -> Html:
    """A key, a path, a value: as it is, in letters of one width."""
    return Html(f"<code>{_html(text)}</code>")


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names with their values, one in a line."""
    return Html("<dl>" + "".join(f"<dt>{_html(name)}</dt><dd>{_html(value)}</dd>" for name, value in rows) + "</dl>")


def tiles(rows: Iterable[tuple[object, str]]) -> Html:
    """Numbers that matter most, each with what it counts."""
    inner = "".join(f'<div class="tile"><b>{_html(value)}</b><span>{_html(name)}</span></div>' for value, name in rows)
    return Html(f'<div class="tiles">{inner}</div>')


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> Html:
    """A table. A column is its title and its kind: `number` (to the right), `short` (not broken) or
    `text`."""
    head = "".join(f'<th scope="col" class="{kind}">{_html(title)}</th>' for title, kind in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{_html(cell)}</td>' for (_, kind), cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


@dataclass(frozen=True)
class Mark:
    """Something that happened, on a timeline."""

    at: float
    """Seconds after the timeline's begin."""
    height: float
    """What the bar's height shows, from 0; the highest of all fills the timeline."""
    group: str
    """Marks of one group have one colour."""
    label: str
    """Shown when the pointer rests on it."""
    hollow: bool = False


def timeline(marks: Sequence[Mark], length: float, *, height_label: str, hollow_label: str = "") -> Html:
    """Marks over time as an SVG of inline markup, with a legend where there are several groups.

    `length` is the timeline's in seconds; `height_label` says what the tallest bar is.
    """
    width, height, left, top, bottom = 960.0, 130.0, 5.0, 22.0, 104.0
    length = max(length, 1.0, *(mark.at for mark in marks)) if marks else max(length, 1.0)
    highest = max((mark.height for mark in marks), default=0.0) or 1.0
    groups = list(dict.fromkeys(mark.group for mark in marks))
    colours = {group: _COLOURS[number % len(_COLOURS)] for number, group in enumerate(groups)}

    def x(at: float) -> float:
        return left + (width - 2 * left) * min(max(at, 0.0), length) / length

    parts = [f'<line x1="{left}" y1="{bottom}" x2="{width - left}" y2="{bottom}" stroke="#d1d5db"/>']
    for tick in _ticks(length):
        anchor = "start" if tick == 0 else "end" if x(tick) > width - 40 else "middle"
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{bottom}" x2="{x(tick):.1f}" y2="{bottom + 5}" stroke="#d1d5db"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 20}" text-anchor="{anchor}">{duration_text(tick)}</text>'
        )
    for mark in marks:
        y = bottom - max(3.0, (bottom - top) * mark.height / highest)
        fill = "#fff" if mark.hollow else colours[mark.group]
        parts.append(
            f"<g><title>{_html(mark.label)}</title>"
            f'<line x1="{x(mark.at):.1f}" y1="{bottom}" x2="{x(mark.at):.1f}" y2="{y:.1f}" '
            f'stroke="{colours[mark.group]}" stroke-width="2"/>'
            f'<circle cx="{x(mark.at):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colours[mark.group]}" '
            'stroke-width="1.5"/></g>'
        )
    parts.append(f'<text x="{left}" y="12">{_html(height_label)}</text>')
    legend = [f'<span><i style="background:{colours[group]}"></i>{_html(group)}</span>' for group in groups[:20]]
    if hollow_label and any(mark.hollow for mark in marks):
        legend.append(
            f'<span><i style="border:1.5px solid #6b7280;box-sizing:border-box"></i>{_html(hollow_label)}</span>'
        )
    below = f'<div class="legend">{"".join(legend)}</div>' if len(legend) > 1 else ""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{_html(height_label)}">'
    return Html(f'<div class="wide">{head}{"".join(parts)}</svg></div>{below}')


def _ticks(length: float) -> list[float]:
    """Round times from 0 to `length`, about six of them."""
    minute, hour = 60, 3600
    minutes = [minute, 2 * minute, 5 * minute, 10 * minute, 15 * minute, 30 * minute]
    hours = [hour, 2 * hour, 4 * hour, 6 * hour, 12 * hour]
    steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, *minutes, *hours]
    days = math.ceil(length / 6 / (24 * hour)) * 24.0 * hour
    step = next((float(one) for one in steps if length / one <= 6), days)
    return [step * number for number in range(int(length / step + 1e-9) + 1)]


def size_text(size: float) -> str:
    """Bytes for people: `0 B`, `12.3 kB`, `4.00 GB`; units of 1000."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def duration_text(seconds: float) -> str:
    """A time span for people: `0.12 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    whole = round(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def time_text(when: str | float) -> str:
    """A moment (ISO 8601, or seconds since the epoch) for people, in UTC: `2026-01-31 13:05:09 UTC`."""
    moment = datetime.fromtimestamp(when, timezone.utc) if isinstance(when, (int, float)) else _parse(when)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def seconds_of(when: str) -> float:
    """Seconds since the epoch of an ISO 8601 time."""
    return _parse(when).timestamp()


def _parse(when: str) -> datetime:
    moment = datetime.fromisoformat(when)
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)


def count_text(number: int, singular: str, plural: str | None = None) -> str:
    """`1 checkpoint`, `1,234 checkpoints`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def metadata_text(metadata: Mapping[str, Any], limit: int = 300) -> str:
    """Metadata in a line: `epoch 3, loss 0.25`; cut after `limit` characters."""
    parts = []
    length = 0
    for name, value in metadata.items():
        text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
        parts.append(f"{name} {text}"[: limit + 1])
        length += len(parts[-1]) + 2
        if length > limit:
            break
    whole = ", ".join(parts)
    return whole if len(whole) <= limit else whole[:limit] + "…"
