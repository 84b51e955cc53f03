"""What a child or a remote server sends takes no more memory and time than the bounds allow. No process is started."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from gateway.upstreams import bounded_response
from gateway.upstreams.bounded_response import AnswerTooLarge, bounded
from gateway.upstreams.dispatcher import MAX_QUESTIONS, MAX_UNHANDLED, UpstreamDispatcher
from gateway.upstreams.pipes import MessageReader

HANG_SECONDS = 10
DENSE = b"[" + b"[]," * 150_000 + b"[]]"


# -- Lines of a child ----------------------------------------------------------------------------------------------


async def read_all(*lines: bytes, noise: list[str]) -> list[Any]:
    reader = asyncio.StreamReader(limit=2**20)
    reader.feed_data(b"".join(line + b"\n" for line in lines))
    reader.feed_eof()
    messages = MessageReader(reader, noise.append, lambda: None, max_values=100_000)
    return [item.message async for item in messages if isinstance(item, SessionMessage)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"result":{"x":' + DENSE + b"}}",
        b'{"result":{"x":' + DENSE + b'},"jsonrpc":"2.0","id": 7}',
    ],
    ids=["id first", "id last"],
)
async def test_answer_with_too_many_values_is_an_error_of_its_own_request_only(line: bytes) -> None:
    noise: list[str] = []
    refused, good = await read_all(line, b'{"jsonrpc":"2.0","id":8,"result":{}}', noise=noise)
    assert isinstance(refused, JSONRPCError)
    assert refused.id == 7
    assert "more than 100000 JSON values" in refused.error.message
    assert isinstance(good, JSONRPCResponse)
    assert noise == [refused.error.message]


async def test_notification_with_too_many_values_is_dropped_and_noted() -> None:
    noise: list[str] = []
    dense = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":' + DENSE + b"}}"
    assert await read_all(dense, noise=noise) == []
    assert len(noise) == 1


async def test_long_answer_of_few_values_is_read() -> None:
    line = b'{"jsonrpc":"2.0","id":7,"result":{"text":"' + b"[]," * 200_000 + b'"}}'
    (message,) = await read_all(line, noise=[])
    assert isinstance(message, JSONRPCResponse)


# -- How many messages are under way -------------------------------------------------------------------------------


class Conversation:
    """A dispatcher whose other side is the test. Handlers wait for `may_end`."""

    def __init__(self) -> None:
        self.send, self._read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self._write, self.answers = anyio.create_memory_object_stream[SessionMessage](10_000)
        self.dispatcher = UpstreamDispatcher(self._read, self._write)
        self.may_end = asyncio.Event()
        self.begun = 0

    async def __aenter__(self) -> "Conversation":
        self._task = asyncio.create_task(self.dispatcher.run(self._on_request, self._on_notify))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.may_end.set()
        await self.send.aclose()
        await self._task
        self.answers.close()

    async def _on_request(self, _: Any, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        self.begun += 1
        await self.may_end.wait()
        return {}

    async def _on_notify(self, _: Any, method: str, params: Mapping[str, Any] | None) -> None:
        self.begun += 1
        await self.may_end.wait()

    async def say(self, message: JSONRPCRequest | JSONRPCNotification) -> None:
        await self.send.send(SessionMessage(message))


@pytest.mark.parametrize("has_one_id", [False, True])
async def test_questions_beyond_the_bound_are_answered_with_an_error(has_one_id: bool) -> None:
    async with asyncio.timeout(HANG_SECONDS), Conversation() as talk:
        for number in range(MAX_QUESTIONS + 5):
            request_id = "same" if has_one_id else number
            await talk.say(JSONRPCRequest(jsonrpc="2.0", id=request_id, method="sampling/createMessage"))
        refused = [(await talk.answers.receive()).message for _ in range(5)]
        assert all(isinstance(message, JSONRPCError) for message in refused)
        assert talk.begun == MAX_QUESTIONS
        talk.may_end.set()
        answered = [(await talk.answers.receive()).message for _ in range(MAX_QUESTIONS)]
        assert all(isinstance(message, JSONRPCResponse) for message in answered)


async def test_sender_of_notifications_waits_while_too_many_are_under_way() -> None:
    async with asyncio.timeout(HANG_SECONDS), Conversation() as talk:
        said = 0

        async def flood() -> None:
            nonlocal said
            for said in range(1, 10 * MAX_UNHANDLED):  # noqa: B007
                await talk.say(JSONRPCNotification(jsonrpc="2.0", method="notifications/message"))

        flooding = asyncio.create_task(flood())
        while talk.begun < MAX_UNHANDLED:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert talk.begun == MAX_UNHANDLED
        assert said <= MAX_UNHANDLED + 2
        talk.may_end.set()
        await flooding


# -- Bodies of a remote server ---------------------------------------------------------------------------------------


class Pieces(httpx2.AsyncByteStream):
    """A body in pieces. `read` counts those that were taken."""

    def __init__(self, *pieces: bytes, times: int = 1) -> None:
        self._pieces = pieces * times
        self.read = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.read += 1
            yield piece

    async def aclose(self) -> None:
        self.is_closed = True


def answer(body: Pieces, kind: str = "application/json", **headers: str) -> httpx2.Response:
    return bounded(
        httpx2.Response(
            200, headers={"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}, stream=body
        )
    )


def compressed(piece: bytes, times: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


async def test_answer_is_handed_on_unpacked() -> None:
    body = Pieces(compressed(b'{"a": 1}', 1))
    response = answer(body, content_encoding="gzip", content_length="28")
    assert await response.aread() == b'{"a": 1}'
    await response.aclose()
    assert body.is_closed


async def test_endless_answer_is_given_up() -> None:
    body = Pieces(b" " * 2**20, times=1000)
    with pytest.raises(AnswerTooLarge, match="longer than"):
        await answer(body).aread()
    assert body.read <= 17


async def test_answer_that_unpacks_to_more_than_the_bound_is_given_up() -> None:
    with pytest.raises(AnswerTooLarge, match="longer than"):
        await answer(Pieces(compressed(b" " * 2**20, 20)), content_encoding="gzip").aread()


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd"])
async def test_answer_packed_in_another_way_is_refused(encoding: str) -> None:
    with pytest.raises(AnswerTooLarge, match="not asked for"):
        await answer(Pieces(b"x"), content_encoding=encoding).aread()


async def test_answer_of_too_many_values_is_refused() -> None:
    with pytest.raises(AnswerTooLarge, match="100000 JSON values"):
        await answer(Pieces(DENSE)).aread()


async def events_of(*pieces: bytes) -> list[str]:
    response = answer(Pieces(*pieces), "text/event-stream; charset=utf-8")
    response.request = httpx2.Request("GET", "http://remote.example/")
    return [event.data async for event in httpx2.EventSource(response)]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_events_are_the_same_however_they_are_cut_and_ended(end: bytes, size: int) -> None:
    text = end.join([b"data: one", b": a comment", b"data: two", b""])
    assert await events_of(*(text[at : at + size] for at in range(0, len(text), size))) == ["one", "two"]


async def test_event_of_too_many_values_is_refused_and_those_before_it_are_read() -> None:
    with pytest.raises(httpx2.SSEError, match="100000 JSON values"):
        await events_of(b"data: one\n\n", b"data: " + DENSE + b"\n\n")


async def test_event_of_too_many_values_is_refused_whichever_line_ends_it() -> None:
    with pytest.raises(httpx2.SSEError, match="100000 JSON values"):
        await events_of(b"data: " + DENSE + b"\n\r\n")


async def test_many_small_events_in_one_piece_are_read() -> None:
    count = 20_000
    assert len(await events_of(b"data: [[],[],[],[],[],[],[]]\n\n" * count)) == count


async def test_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_response, "MAX_MESSAGE_BYTES", 10_000)
    with pytest.raises(httpx2.SSEError, match="longer than"):
        await events_of(b"data: ", *[b"x" * 1000] * 20)
