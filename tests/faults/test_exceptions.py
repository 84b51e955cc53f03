"""Errors at every moment of a response: each is answered as well as can be, and the next request is none the worse."""

from __future__ import annotations

import contextlib
import time
from http.client import IncompleteRead

import pytest

from tests.faults.figures import Record, Watched, is_no_more_than
from tests.support.deadlines import within
from tests.support.host_process import HostProcess
from tests.support.processes import until

EACH = 100


def fail(host: HostProcess, moment: str) -> str:
    """What a client makes of the answer."""
    try:
        answer = host.request("GET", f"/boom/{moment}")
    except IncompleteRead:
        return "cut"
    except ConnectionError:
        return "reset"
    return f"{answer.status} {answer.body.decode()}"


def test_hundred_failures_at_each_moment_leave_the_host_as_it_was(probed_host: HostProcess, record: Record) -> None:
    host, watched = probed_host, Watched(probed_host.pid)
    with host.session("workshop", "bystander:key") as stream:
        stream.call("echo", text="warm")
        for moment in ("before", "started", "stream", "page", "end"):
            fail(host, moment)
        # Threads open their connections to the database when they first need them, and keep them.
        until(lambda: host.rows("SELECT 1 FROM records_sessionrecord WHERE user_id = 'bystander'"))
        until(lambda: host.rows("SELECT 1 FROM records_serverrecord"))
        before, descriptors = host.request("GET", "/inside/").json, watched.descriptors
        failures = len([line for line in host.log().splitlines() if "A request failed" in line])
        counted = host.metric("gumcp_request_failures_total")
        started = time.monotonic()
        seen = {moment: {fail(host, moment) for _ in range(EACH)} for moment in ("before", "started", "stream", "end")}
        pages = {fail(host, "page") for _ in range(EACH)}
        seconds = time.monotonic() - started
        refusal = '500 {"error": "Internal server error"}'
        # A stream whose rest is missing ends in order, and its client comes back; half a page must not pass for one.
        assert seen == {
            "before": {refusal},
            "started": {refusal},
            "stream": {"200 data: half\n\n"},
            "end": {"200 whole"},
        }
        assert pages <= {"cut", "reset"}
        asked = time.monotonic()
        assert fail(host, "before") == refusal
        late = time.monotonic() - asked
        assert late < within(1)
        with contextlib.suppress(AssertionError):
            until(lambda: is_no_more_than(before, host.request("GET", "/inside/").json), 5)
        assert is_no_more_than(before, now := host.request("GET", "/inside/").json), (before, now)
        until(lambda: watched.descriptors < descriptors + EACH / 10, 5)
        total = 5 * EACH + 1
        assert host.metric("gumcp_request_failures_total") - counted == total
        assert host.metric("gumcp_request_failures_total", when="after_start") >= 2 * EACH
        assert host.log().count("A request failed") - failures == total
        assert "RuntimeError: boom stream" in host.log()
        assert stream.call("echo", text="alive") == "alive"
    record("500 failures", f"{seconds:.1f} s; the next one's 500 after {late * 1000:.0f} ms; {descriptors} descriptors")


@pytest.mark.parametrize("moment", ["before", "started"])
def test_page_of_an_allowed_origin_reads_the_500(probed_host: HostProcess, moment: str) -> None:
    origins = {"http://127.0.0.1": "http://127.0.0.1", "https://evil.example": None, "": None}
    for origin, named in origins.items():
        answer = probed_host.request("GET", f"/boom/{moment}", headers={"Origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (500, named)
