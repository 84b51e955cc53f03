"""Streams of the 2025 era that are lost and taken up again, in bytes and with the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from mcp.client import Client

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, ROOT, until
from tests.support.streamable import HandshakeSession, Request
from tests.support.wire import NEWEST_HANDSHAKE

KEPT_EVENTS = 8
KEPT_BYTES = 20_000
RECONNECTION = "Reconnection test completed"


@pytest.fixture(scope="module")
def host(start_host: StartHost) -> Iterator[HostProcess]:
    with start_host(
        server_dirs=f"{BUNDLED_SERVERS}:{ROOT / 'tests' / 'servers' / 'eras'}",
        GUMCP_PING_SECONDS="0.4",
        GUMCP_MAX_KEPT_EVENTS=str(KEPT_EVENTS),
        GUMCP_MAX_KEPT_EVENT_BYTES=str(KEPT_BYTES),
    ) as host:
        yield host


@pytest.fixture
def session(host: HostProcess) -> Iterator[HandshakeSession]:
    with HandshakeSession(host, "ledger", "ada:key") as session:
        yield session


def said(under_way: Request) -> str:
    """What the next log notification says."""
    message = under_way.message()
    assert message is not None, "the stream ended"
    assert message["method"] == "notifications/message", message
    return str(message["params"]["data"])


def announce(session: HandshakeSession, text: str, times: int = 1) -> None:
    assert session.call("announce", text=text, times=times) == "announced"


def place_of(under_way: Request) -> str:
    """The id of the last event that was read."""
    assert under_way.last_event_id is not None
    return under_way.last_event_id


# -- A call's stream -------------------------------------------------------------------------------------------------


def test_stream_opens_with_a_place_to_resume_from(session: HandshakeSession) -> None:
    with session.start("chatter", times=2) as call, session.get() as standalone:
        for stream in (call, standalone):
            first = stream.event()
            assert first is not None
            assert (first.data, first.retry) == ("", 500)
            assert first.id
        assert said(call) == "0"


def test_call_that_closed_its_stream_is_finished_on_the_next_one(host: HostProcess) -> None:
    with HandshakeSession(host, "everything", "ada:key") as session:
        with session.start("test_reconnection") as call:
            assert call.messages() == []
            place = place_of(call)
        with session.get(place) as resumed:
            assert resumed.text() == RECONNECTION
            assert resumed.message() is None


async def test_official_client_gets_the_result_of_a_call_that_closed_its_stream(host: HostProcess) -> None:
    async with asyncio.timeout(20):
        for mode in ("legacy", "auto"):
            async with Client(host.url("everything", "ada:key"), mode=mode) as client:
                result = await client.call_tool("test_reconnection", {})
                assert result.content[0].text == RECONNECTION


def test_lost_stream_goes_on_where_it_was(session: HandshakeSession) -> None:
    call = session.start("hold", name="lost", say="after the loss")
    assert said(call) == "holding"
    call.leave()
    with session.get(place_of(call)) as resumed:
        assert session.call("release", name="lost") == "released"
        assert said(resumed) == "after the loss"
        assert resumed.text() == "held lost"
        assert resumed.message() is None


def test_call_that_ended_meanwhile_is_replayed(session: HandshakeSession) -> None:
    call = session.start("hold", name="ended", say="the end is near")
    assert said(call) == "holding"
    call.leave()
    session.call("release", name="ended")
    until(lambda: session.call("count", of="released ended") == "1")
    for _ in range(2):  # as often as it takes
        with session.get(place_of(call)) as resumed:
            assert said(resumed) == "the end is near"
            assert resumed.text() == "held ended"
            assert resumed.message() is None


def test_silent_call_can_be_resumed_too(session: HandshakeSession) -> None:
    with session.start("hold", name="silent", quiet=True) as call:
        first = call.event()
        assert first is not None
        assert first.data == ""
    with session.get(place_of(call)) as resumed:
        session.call("release", name="silent")
        assert resumed.text() == "held silent"


def test_calls_are_resumed_each_for_itself(session: HandshakeSession) -> None:
    calls = {name: session.start("hold", name=name) for name in ("one", "two")}
    for call in calls.values():
        assert said(call) == "holding"
        call.leave()
    for name in ("two", "one"):
        session.call("release", name=name)
    for name, call in calls.items():
        with session.get(place_of(call)) as resumed:
            assert [message["result"]["content"][0]["text"] for message in resumed.messages()] == [f"held {name}"]


# -- The standalone stream -------------------------------------------------------------------------------------------


def test_second_standalone_stream_is_409_and_the_first_lives_on(session: HandshakeSession) -> None:
    with session.get() as standalone:
        assert standalone.event() is not None
        answer = session.get().answer()
        assert answer.status == 409
        assert answer.json["error"]["code"] == -32600
        announce(session, "still")
        assert said(standalone) == "still0"


def test_standalone_stream_is_free_once_its_client_has_left(session: HandshakeSession) -> None:
    for number in range(3):
        with session.get() as standalone:
            announce(session, f"{number}.")
            assert said(standalone) == f"{number}.0"
        until(lambda: session.host.metric("gumcp_active_connections", server="ledger") == 0)


def test_what_was_said_before_the_stream_opened_is_on_it(session: HandshakeSession) -> None:
    announce(session, "early", times=3)
    with session.get() as standalone:
        assert [said(standalone) for _ in range(3)] == ["early0", "early1", "early2"]


def test_standalone_stream_goes_on_where_it_was(session: HandshakeSession) -> None:
    with session.get() as standalone:
        announce(session, "a", times=2)
        assert [said(standalone), said(standalone)] == ["a0", "a1"]
    announce(session, "b", times=2)
    with session.get(place_of(standalone)) as resumed:
        assert [said(resumed), said(resumed)] == ["b0", "b1"]
        announce(session, "c")
        assert said(resumed) == "c0"


def test_standalone_stream_survives_that_calls_have_used_up_the_store(session: HandshakeSession) -> None:
    with session.get() as standalone:
        announce(session, "heard")
        assert said(standalone) == "heard0"
    with session.start("chatter", times=3 * KEPT_EVENTS) as call:
        call.messages()
    with session.get(place_of(standalone)) as resumed:
        announce(session, "later")
        assert said(resumed) == "later0"


def test_question_is_asked_on_the_standalone_stream(host: HostProcess) -> None:
    with (
        HandshakeSession(host, "ledger", "ada:key", NEWEST_HANDSHAKE, capabilities={"roots": {}}) as session,
        session.get() as standalone,
        session.start("ask_aside") as call,
    ):
        asked = standalone.message()
        assert asked["method"] == "roots/list"
        session.respond(asked, {"roots": [{"uri": "file:///aside"}]})
        assert call.text() == "file:///aside"
        assert not call.is_stream


# -- What cannot be resumed ------------------------------------------------------------------------------------------


def test_event_id_that_was_never_given_is_404_and_disturbs_no_call(session: HandshakeSession) -> None:
    with session.start("hold", name="bystander", quiet=True) as call:
        until(lambda: session.call("count", of="held bystander") == "1")
        for event_id in ("x", "0", "0-0", "1-0", "7-0", "999-0", "0-999", "1-1", "-1-1", "0-1-1", "1" * 60 + "-1"):
            answer = session.get(event_id).answer()
            assert answer.status == 404, event_id
            assert answer.json["error"]["code"] == -32600
        session.call("release", name="bystander")
        assert call.text() == "held bystander"


def test_event_id_of_another_session_is_404(host: HostProcess, session: HandshakeSession) -> None:
    with HandshakeSession(host, "ledger", "bob:key") as other, other.start("chatter", times=3) as call:
        call.messages()
        assert session.get(place_of(call)).answer().status == 404
        assert other.get(place_of(call)).answer().status == 200


@pytest.mark.parametrize(("times", "characters"), [(4 * KEPT_EVENTS, 0), (5, KEPT_BYTES // 2)])
def test_event_that_later_ones_have_driven_out_is_404(session: HandshakeSession, times: int, characters: int) -> None:
    with session.start("chatter", times=times, characters=characters) as call:
        assert said(call).startswith("0")
        first = place_of(call)
        call.messages()
        last = place_of(call)
    answer = session.get(first).answer()
    assert answer.status == 404
    # Nothing has been lost after the last one.
    assert session.get(last).answer().status == 200


def test_last_event_that_is_gone_can_be_resumed_from(session: HandshakeSession) -> None:
    with session.start("chatter", times=KEPT_EVENTS) as call:
        places = []
        while call.message() is not None:
            places.append(place_of(call))
    # Of nine messages eight are kept.
    assert len(places) == KEPT_EVENTS + 1
    with session.get(places[0]) as resumed:
        assert len(resumed.messages()) == KEPT_EVENTS


def test_newest_event_is_kept_whatever_its_size(session: HandshakeSession) -> None:
    with session.get() as standalone:
        assert standalone.event() is not None
    announce(session, "x" * 2 * KEPT_BYTES)
    with session.get(place_of(standalone)) as resumed:
        assert said(resumed) == "x" * 2 * KEPT_BYTES + "0"


def test_what_nobody_reads_is_kept_within_bounds(session: HandshakeSession) -> None:
    announce(session, "n", times=100)
    with session.get() as standalone:
        # The newest ones; the marker that opens the stream takes no place of a message that was sent on it.
        assert [said(standalone) for _ in range(KEPT_EVENTS)] == [f"n{number}" for number in range(92, 100)]
