"""Hosts that die: what becomes of the rows of their sessions."""

from __future__ import annotations

from pathlib import Path

from tests.support.host_process import StartHost
from tests.support.processes import until

LOST_SECONDS = 15.0
"""How soon the sessions of a process that died are marked."""


def test_sessions_of_a_killed_host_are_marked_lost_within_fifteen_seconds(
    start_host: StartHost, tmp_path: Path
) -> None:
    with (
        start_host(data_dir=tmp_path) as survivor,
        start_host(data_dir=tmp_path) as victim,
        victim.session("workshop", "doomed:key"),
        survivor.session("workshop", "safe:key") as safe,
    ):
        query = "SELECT user_id, state FROM records_sessionrecord ORDER BY user_id"
        until(lambda: len(survivor.rows(query)) == 2)
        victim.kill()
        states = [{"user_id": "doomed", "state": "lost"}, {"user_id": "safe", "state": "open"}]
        until(lambda: survivor.rows(query) == states, LOST_SECONDS)
        assert safe.call("echo", text="alive") == "alive"


def test_host_that_starts_after_a_crash_marks_what_was_left_open(start_host: StartHost, tmp_path: Path) -> None:
    query = "SELECT state, closed_at, end_reason FROM records_sessionrecord"
    with start_host(data_dir=tmp_path) as host, host.session("workshop", "doomed:key"):
        until(lambda: host.rows(query))
        host.kill()
    with start_host(data_dir=tmp_path) as host:
        until(lambda: host.rows(query)[0]["state"] == "lost", LOST_SECONDS)
        assert host.rows(query)[0]["closed_at"]
        assert "died" in host.rows(query)[0]["end_reason"]
