"""Sizes, counts, times and durations as text, for the command line, the logs and the cards.

These functions only turn values into text and back: they read no clock, no file and no setting.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

__all__ = [
    "count_text",
    "duration_text",
    "has_credentials",
    "parse_period",
    "period_text",
    "public_url",
    "seconds_of",
    "shown_url",
    "size_text",
    "time_text",
]

_PERIOD_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0, "w": 7 * 24 * 3600.0}
_QUERY = re.compile(r"([?#]).+", re.DOTALL)
_USER = re.compile(r"(:/|//)(?:[^/]*@|[^/:@]*:(?!\d*(?:[/?#]|$)).*@)", re.DOTALL)
"""Also a password that has a slash in it; behind a colon is no port then."""
_CREDENTIALS = re.compile(
    r"[^/]*//+[^/]*@|.*\?(?:.*&)?(?:X-(?:Amz|Goog)-[a-z-]+|AWSAccessKeyId|GoogleAccessId|Signature|sig)=", re.IGNORECASE
)
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def public_url(text: str) -> str:
    """A URL, or a text that was meant to be one, for a message: a signature or a password in it is a secret."""
    return _QUERY.sub(r"\1…", _USER.sub(r"\1…@", text))


def has_credentials(url: str) -> bool:
    """Whether a URL has a user name, a password or a signature in it. A plain `?` may be in the name of an object."""
    return _CREDENTIALS.match(url) is not None


def shown_url(url: str) -> str:
    """A URL for a message: as it is, unless it has credentials."""
    return public_url(url) if has_credentials(url) else url


def size_text(size: float) -> str:
    """A number of bytes: `0 B`, `999 B`, `1.5 KiB`, `4.7 GiB`. The units are powers of 1024."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def count_text(number: int, singular: str, plural: str | None = None) -> str:
    """A number of things: `1 file`, `1,234 files`. Without `plural`, an `s` is added to `singular`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def time_text(when: str | float) -> str:
    """A moment in UTC, to the second: `2026-01-31 13:05:09`.

    `when` is an ISO 8601 text, or seconds since the epoch. A text that is not ISO 8601 is cut to its first 19
    characters: a manifest may hold any text as its date.
    """
    try:
        moment = _parse(when) if isinstance(when, str) else datetime.fromtimestamp(when, timezone.utc)
    except ValueError:
        return str(when)[:19].replace("T", " ")
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def seconds_of(when: str) -> float:
    """The seconds since the epoch of an ISO 8601 text; without a time zone it counts as UTC. Raises ValueError."""
    return _parse(when).timestamp()


def _parse(when: str) -> datetime:
    moment = datetime.fromisoformat(when.replace("Z", "+00:00"))
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except OverflowError as error:
        # In UTC, it is in another year than 1 to 9999.
        raise ValueError(f"{when!r}: {error}") from None


def duration_text(seconds: float) -> str:
    """A measured duration: `0.12 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def parse_period(text: str) -> float:
    """The seconds of a period that a user typed: `90s`, `30m`, `12h`, `7d`, `2w`. Raises ValueError."""
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time; write 90s, 30m, 12h, 7d or 2w")
    return float(match[1]) * _PERIOD_UNITS[match[2]]


def period_text(seconds: float) -> str:
    """A period as `parse_period` reads it: `7d`, `90m`, `0s`."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _PERIOD_UNITS[unit] == 0), "s")
    return f"{seconds / _PERIOD_UNITS[unit]:g}{unit}"
