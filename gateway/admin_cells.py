"""How values look in the admin's tables: times, states, long texts, links. Each function returns safe HTML.

What clients chose is shown as text, with control and format characters as escapes, and cut to a length that fits.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import urlencode

from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from gateway.printable import printable

Tone = Literal["good", "warn", "bad", "plain"]
"""What a badge's colour means."""

NOTHING: Final = "-"
"""What stands where there is no value."""

SHOWN_LENGTH: Final = 40
"""How many characters of a text a table shows. The rest can be read by pointing at it, and on the row's own page."""

_UNITS: Final = (
    ("year", timedelta(days=365)),
    ("day", timedelta(days=1)),
    ("h", timedelta(hours=1)),
    ("min", timedelta(minutes=1)),
)

_JUST_NOW: Final = timedelta(seconds=10)


def ago(moment: datetime | None, *, now: datetime | None = None) -> str:
    """How long ago something was, or in what time it will be, with the exact time in its title."""
    if moment is None:
        return NOTHING
    passed = (now or timezone.now()) - moment
    exact = moment.astimezone(timezone.get_default_timezone())
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        exact.isoformat(timespec="seconds"),
        f"{exact:%Y-%m-%d %H:%M:%S %Z}",
        _span(passed),
    )


def _span(passed: timedelta) -> str:
    length = abs(passed)
    if length < _JUST_NOW:
        return "just now"
    text = f"{length.seconds} s"
    for name, unit in _UNITS:
        if length >= unit:
            count = length // unit
            text = f"{count} {name}{'s' if unit >= timedelta(days=1) and count > 1 else ''}"
            break
    return f"{text} ago" if passed > timedelta() else f"in {text}"


def short(text: str, length: int = SHOWN_LENGTH) -> str:
    """A text that somebody else chose. Beyond `length` it is cut, and its title has the whole."""
    text = printable(text)
    if not text:
        return NOTHING
    if len(text) <= length:
        return format_html("{}", text)
    return format_html('<span title="{}">{}…</span>', text, text[: length - 1])


def badge(text: str, tone: Tone) -> str:
    """A state, with a colour. The text alone tells it too."""
    return format_html('<span class="badge badge-{}">{}</span>', tone, text)


def two_lines(first: str, second: str) -> str:
    """A value, and in small letters what belongs to it."""
    if not second or second == NOTHING:
        return first
    return format_html('{}<span class="second">{}</span>', first, second)


def link(text: str, url: str) -> str:
    """A link within the admin."""
    return format_html('<a href="{}">{}</a>', url, text)


def list_url(model: str, **filters: Any) -> str:
    """The address of a model's list (`records_sessionrecord`), filtered."""
    return with_query(reverse(f"admin:{model}_changelist"), filters)


def row_url(model: str, pk: Any) -> str:
    """The address of a row's page."""
    return reverse(f"admin:{model}_change", args=[pk])


def with_query(url: str, parameters: Mapping[str, Any]) -> str:
    """`url` with these parameters."""
    return f"{url}?{urlencode(parameters)}" if parameters else url
