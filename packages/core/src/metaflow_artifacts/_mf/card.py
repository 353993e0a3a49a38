"""The parts of the decorators' cards: pages, facts, tables and a timeline, as HTML and SVG.

A page loads nothing from the network. Its only script is the few lines with which Metaflow's viewer updates the page
while the task runs. Every function here escapes the text that it is given, except for `Html`, which these functions
return.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._text import duration_text, time_text

__all__ = [
    "Html",
    "TimelinePoint",
    "code",
    "facts",
    "failure",
    "heading",
    "metadata_text",
    "note",
    "notice",
    "page",
    "paragraph",
    "reload_token",
    "section",
    "table",
    "task_heading",
    "tiles",
    "timeline",
]

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#be185d")

_MAX_MESSAGE = 4000
"""Characters of an error's message that a card shows."""

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
code { font: .88em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  user-select: all; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0 0; }
dt { color: #6b7280; }
dd { margin: 0; overflow-wrap: anywhere; }
.notice { padding: .5rem .8rem; border-left: 4px solid #d97706; background: #fffbeb; margin: .6rem 0;
  overflow-wrap: anywhere; }
.message { white-space: pre-wrap; }
.notice.failed { border-color: #dc2626; background: #fef2f2; }
pre { font: .85em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-x: auto; margin: .4rem 0 0; }
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
tr.detailed td { border-bottom: 0; padding-bottom: 0; }
tr.detail td { padding-top: .1rem; color: #6b7280; overflow-wrap: anywhere; }
svg { display: block; width: 100%; min-width: 52rem; height: auto; }
svg text { fill: #6b7280; font-size: 12px; }
.legend { color: #6b7280; font-size: .85rem; display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
.legend i.hollow { border: 1.5px solid #6b7280; box-sizing: border-box; }
.note { color: #6b7280; font-size: .85rem; margin: .4rem 0; }
"""


class Html(str):
    """Finished markup. Any other string is escaped when it becomes part of a page."""

    __slots__ = ()


def _html(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def reload_token(*, live: bool) -> str:
    """The word by which Metaflow's viewer knows whether an update belongs to the page that it shows.

    With another word than the page has, the viewer loads the page again. `final` also ends the updates.
    """
    return "never" if live else "final"


def page(title: str, parts: Iterable[str], *, live: bool) -> str:
    """A whole page with the window title `title`, and `parts` one below the other.

    With `live`, the viewer replaces these parts by the `content` of an update.
    """
    script = f'var METAFLOW_RELOAD_TOKEN = "{reload_token(live=live)}";'
    if live:
        script += (
            "var shown; window.metaflow_card_update = function (data) {"
            # Most updates change nothing; then the page is left alone, so that selected text stays selected.
            "if (data.content !== shown) "
            '{ document.getElementById("content").innerHTML = shown = data.content; } return true; };'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{script}</script></head>"
        f'<body><main id="content">{"".join(_html(part) for part in parts)}</main></body></html>'
    )


def section(title: str, *parts: str) -> Html:
    """A headline with its parts below."""
    return Html(f"<section><h2>{_html(title)}</h2>{''.join(_html(part) for part in parts)}</section>")


def heading(title: str, below: str, state: str) -> Html:
    """The head of a page: a title, a line below it, and the task's state: `running`, `done` or `failed`."""
    return Html(
        f'<header><h1>{_html(title)} <span class="state {_html(state)}">{_html(state)}</span></h1>'
        f'<p class="sub">{_html(below)}</p></header>'
    )


def task_heading(title: str, data: Mapping[str, Any], *details: str) -> Html:
    """The head of a task's page; `data` has the task's `pathspec`, `attempt` and `state`, and `now`.

    `now` is when the data was collected, in seconds since the epoch. `title` is followed by the name of the step.
    """
    when = ("as of " if data["state"] == "running" else "ended ") + f"{time_text(data['now'])} UTC"
    below = ", ".join([data["pathspec"], f"attempt {data['attempt']}", *details, when])
    return heading(f"{title} of {data['pathspec'].split('/')[2]}", below, data["state"])


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{_html(text)}</p>")


def note(text: str) -> Html:
    """A line of small print."""
    return Html(f'<p class="note">{_html(text)}</p>')


def notice(text: str) -> Html:
    """A highlighted line that says what went wrong."""
    return Html(f'<p class="notice" role="alert">{_html(text)}</p>')


def failure(kind: str, message: str, lines: str) -> Html:
    """The error that ended the task, below the name of its class; `lines` is its traceback, folded up."""
    what = f"{kind}: {_cut(message, _MAX_MESSAGE)}" if message else kind
    trace = f"<details><summary>Traceback</summary><pre>{_html(lines)}</pre></details>" if lines else ""
    return Html(f'<div class="notice failed" role="alert"><div class="message">{_html(what)}</div>{trace}</div>')


def code(text: str) -> Html:
    """A key, path or value, unchanged, in a monospaced font."""
    return Html(f"<code>{_html(text)}</code>")


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names with their values, one pair a line."""
    return Html("<dl>" + "".join(f"<dt>{_html(name)}</dt><dd>{_html(value)}</dd>" for name, value in rows) + "</dl>")


def tiles(rows: Iterable[tuple[object, str]]) -> Html:
    """The most important numbers, each with what it counts."""
    inner = "".join(f'<div class="tile"><b>{_html(value)}</b><span>{_html(name)}</span></div>' for value, name in rows)
    return Html(f'<div class="tiles">{inner}</div>')


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]], details: Iterable[str] = ()) -> Html:
    """A table. A column is a title and a kind: `number` (right-aligned), `short` (one line) or `text` (wrapped).

    With `details`, one for each row, each row has a second line over its whole width.
    """
    head = "".join(f'<th scope="col" class="{kind}">{_html(title)}</th>' for title, kind in columns)
    below = [f'<tr class="detail"><td colspan="{len(columns)}">{_html(detail)}</td></tr>' for detail in details]
    body = "".join(
        f"<tr{' class=detailed' if below else ''}>"
        + "".join(f'<td class="{kind}">{_html(cell)}</td>' for (_, kind), cell in zip(columns, row, strict=True))
        + "</tr>"
        + (below[number] if below else "")
        for number, row in enumerate(rows)
    )
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


@dataclass(frozen=True)
class TimelinePoint:
    """An event on a timeline."""

    at: float
    """Seconds since the begin of the timeline."""
    height: float
    """The value that the bar's height shows, from 0. The highest bar fills the timeline."""
    group: str
    """Points of one group have the same colour."""
    label: str
    """The text that is shown while the pointer is on the point."""
    hollow: bool = False
    """Whether the point is drawn as a circle that is not filled."""


def timeline(points: Sequence[TimelinePoint], length: float, *, height_label: str, hollow_label: str = "") -> Html:
    """Points over time as inline SVG, with a legend if there are several groups.

    `length` is the length of the timeline in seconds. `height_label` says what the heights mean, `hollow_label` what
    hollow points mean.
    """
    width, height, left, top, bottom = 960.0, 130.0, 5.0, 22.0, 104.0
    length = max(length, 1.0, *(point.at for point in points)) if points else max(length, 1.0)
    highest = max((point.height for point in points), default=0.0) or 1.0
    groups = list(dict.fromkeys(point.group for point in points))
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
    for point in points:
        y = bottom - max(3.0, (bottom - top) * point.height / highest)
        fill = "#fff" if point.hollow else colours[point.group]
        parts.append(
            f"<g><title>{_html(point.label)}</title>"
            f'<line x1="{x(point.at):.1f}" y1="{bottom}" x2="{x(point.at):.1f}" y2="{y:.1f}" '
            f'stroke="{colours[point.group]}" stroke-width="2"/>'
            f'<circle cx="{x(point.at):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colours[point.group]}" '
            'stroke-width="1.5"/></g>'
        )
    parts.append(f'<text x="{left}" y="12">{_html(height_label)}</text>')
    legend = [f'<span><i style="background:{colours[group]}"></i>{_html(group)}</span>' for group in groups[:20]]
    if hollow_label and any(point.hollow for point in points):
        legend.append(
            f'<span><i style="border:1.5px solid #6b7280;box-sizing:border-box"></i>{_html(hollow_label)}</span>'
        )
    below = f'<div class="legend">{"".join(legend)}</div>' if len(legend) > 1 else ""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{_html(height_label)}">'
    return Html(f'<div class="wide">{head}{"".join(parts)}</svg></div>{below}')


def _ticks(length: float) -> list[float]:
    """Round times in seconds from 0 to `length`, at most seven."""
    minute, hour = 60, 3600
    minutes = [minute, 2 * minute, 5 * minute, 10 * minute, 15 * minute, 30 * minute]
    hours = [hour, 2 * hour, 4 * hour, 6 * hour, 12 * hour]
    steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, *minutes, *hours]
    days = math.ceil(length / 6 / (24 * hour)) * 24.0 * hour
    step = next((float(one) for one in steps if length / one <= 6), days)
    return [step * number for number in range(int(length / step + 1e-9) + 1)]


def metadata_text(metadata: Mapping[str, Any], limit: int = 300) -> str:
    """Metadata as one line: `epoch 3, loss 0.25`; cut after `limit` characters."""
    parts = []
    length = 0
    for name, value in metadata.items():
        text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
        parts.append(f"{name} {text}"[: limit + 1])
        length += len(parts[-1]) + 2
        if length > limit:
            break
    return _cut(", ".join(parts), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
