import pytest

from gateway.transports.event_buffer import STANDALONE, EventBuffer


def data_after(buffer: EventBuffer, event_id: bytes) -> list[bytes] | None:
    found = buffer.after(event_id.decode())
    return None if found is None else [data for _, data in found[1]]


def test_replay_has_the_later_events_of_the_same_stream_only() -> None:
    buffer = EventBuffer(10, 1000)
    ids = [
        buffer.append(stream, data) for stream, data in [(1, b"a"), (2, b"x"), (1, b"b"), (STANDALONE, b"y"), (1, b"c")]
    ]
    assert buffer.after(ids[0].decode()) == (1, [(ids[2], b"b"), (ids[4], b"c")])
    assert data_after(buffer, ids[4]) == []
    assert buffer.after(ids[1].decode()) == (2, [])
    assert len(set(ids)) == 5


def test_event_that_marks_a_place_can_be_resumed_from_and_is_not_replayed() -> None:
    buffer = EventBuffer(10, 1000)
    place = buffer.append(1, b"")
    buffer.append(1, b"")
    buffer.append(1, b"a")
    assert data_after(buffer, place) == [b"a"]


@pytest.mark.parametrize(
    "event_id", ["", "1", "1-", "-1", "1-2-3", "x-1", "1-x", "1-99", "9-1", "²-1", "1-1" + "0" * 50]
)
def test_id_that_was_never_given_cannot_be_resumed_from(event_id: str) -> None:
    buffer = EventBuffer(10, 1000)
    buffer.append(1, b"a")
    assert buffer.after(event_id) is None


@pytest.mark.parametrize(("max_events", "max_bytes"), [(3, 1000), (100, 30)])
def test_oldest_events_are_dropped_and_a_replay_never_has_a_gap(max_events: int, max_bytes: int) -> None:
    buffer = EventBuffer(max_events, max_bytes)
    ids = [buffer.append(1, b"%010d" % number) for number in range(6)]
    assert [data_after(buffer, event_id) is None for event_id in ids] == [True, True, False, False, False, False]
    # The newest of those that were dropped: who has read it has missed nothing.
    assert data_after(buffer, ids[2]) == [b"%010d" % number for number in range(3, 6)]


def test_event_that_is_too_large_is_kept_until_it_was_sent() -> None:
    buffer = EventBuffer(10, 100)
    before = buffer.append(1, b"a")
    buffer.append(1, b"x" * 500)
    assert buffer.is_too_large
    assert data_after(buffer, before) == [b"x" * 500]
    buffer.note_sent(buffer.last_sequence)
    assert not buffer.is_too_large
    assert buffer._bytes == 0
    assert data_after(buffer, before) is None


def test_earlier_event_that_was_sent_drops_no_later_one() -> None:
    buffer = EventBuffer(10, 100)
    first = buffer.append(1, b"x" * 500)
    sent = buffer.last_sequence
    buffer.append(1, b"y" * 600)
    buffer.note_sent(sent)
    assert data_after(buffer, first) == [b"y" * 600]


def test_events_within_the_bounds_stay_when_they_were_sent() -> None:
    buffer = EventBuffer(10, 100)
    place = buffer.append(1, b"a")
    buffer.append(1, b"b")
    buffer.note_sent(buffer.last_sequence)
    assert data_after(buffer, place) == [b"b"]


def test_streams_that_are_over_leave_nothing_behind() -> None:
    buffer = EventBuffer(3, 1000)
    for stream in range(1, 1000):
        buffer.append(stream, b"a")
        buffer.end(stream)
    assert (len(buffer._events), len(buffer._kept), buffer._dropped, buffer._live) == (3, 3, {}, set())


def test_ended_stream_can_be_replayed_while_its_events_are_kept() -> None:
    buffer = EventBuffer(3, 1000)
    place = buffer.append(1, b"a")
    buffer.append(1, b"b")
    buffer.end(1)
    assert data_after(buffer, place) == [b"b"]
    for _ in range(3):
        buffer.append(2, b"x")
    assert data_after(buffer, place) is None
