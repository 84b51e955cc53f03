"""How values look in the admin's tables."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway import admin_cells

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (timedelta(seconds=3), "just now"),
        (timedelta(seconds=-3), "just now"),
        (timedelta(seconds=59), "59 s ago"),
        (timedelta(minutes=3, seconds=20), "3 min ago"),
        (timedelta(hours=23, minutes=59), "23 h ago"),
        (timedelta(days=1), "1 day ago"),
        (timedelta(days=30), "30 days ago"),
        (timedelta(days=800), "2 years ago"),
        (timedelta(days=-7), "in 7 days"),
    ],
)
def test_time_says_how_long_ago_it_was_and_has_the_exact_moment_in_its_title(passed: timedelta, text: str) -> None:
    moment = NOW - passed
    assert admin_cells.ago(moment, now=NOW) == (
        f'<time datetime="{moment.isoformat()}" title="{moment:%Y-%m-%d %H:%M:%S} UTC">{text}</time>'
    )


def test_time_that_there_is_not_is_a_dash() -> None:
    assert admin_cells.ago(None) == "-"


def test_text_that_somebody_chose_is_escaped_and_cut_and_whole_in_its_title() -> None:
    assert admin_cells.short("<b>\u202ex\n") == r"&lt;b&gt;\u202ex\n"
    assert admin_cells.short("y" * 20, 5) == '<span title="yyyyyyyyyyyyyyyyyyyy">yyyy…</span>'
    assert admin_cells.short('"><i>', 3) == '<span title="&quot;&gt;&lt;i&gt;">&quot;&gt;…</span>'
    assert admin_cells.short("") == "-"
