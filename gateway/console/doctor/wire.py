"""The doctor's HTTP requests: bounded in time and size, without following redirects, and never repeating a key."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx2

from gateway.console.doctor.findings import Cause, Fault
from gateway.printable import printable

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Longest answer that is read."""

MAX_SHOWN_CHARACTERS: Final = 200
"""How much of an answer is shown."""

EVENT_STREAM: Final = "text/event-stream"
ACCEPT_BOTH: Final = f"application/json, {EVENT_STREAM}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that was read to its end, or to the event that answers the request."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return media_type(self.headers)

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Stream:
    """An event stream that is open. Waits for at most as long as it is told."""

    def __init__(self, response: httpx2.Response, patience_seconds: float) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._chunks = response.iter_bytes()
        self._buffer = b""
        self._size = 0
        self._patience_seconds = patience_seconds

    def frames(self, seconds: float | None = None) -> Iterator[tuple[str, bytes]]:
        """Each event and comment as name and data, until `seconds` have passed. A comment is called `comment`.

        Raises:
            TimeoutError
            Fault: it broke off or is too long.
        """
        deadline = time.monotonic() + (self._patience_seconds if seconds is None else seconds)
        while True:
            while (block := self._next_block()) is not None:
                yield from _frames_of(block)
            if time.monotonic() > deadline:
                raise TimeoutError
            try:
                chunk = next(self._chunks)
            except StopIteration:
                raise Fault(Cause.UNEXPECTED, "the event stream ended early") from None
            except httpx2.TimeoutException:
                raise TimeoutError from None
            except httpx2.HTTPError as error:
                raise Fault(Cause.UNEXPECTED, f"the event stream broke off ({type(error).__name__})") from None
            self._size += len(chunk)
            if self._size > MAX_BODY_BYTES:
                raise Fault(Cause.UNEXPECTED, f"the event stream has more than {MAX_BODY_BYTES} bytes")
            self._buffer += chunk.replace(b"\r\n", b"\n")

    def _next_block(self) -> bytes | None:
        block, separator, rest = self._buffer.partition(b"\n\n")
        if not separator:
            return None
        self._buffer = rest
        return block


class Wire:
    """Makes the requests of one client."""

    def __init__(
        self, *, user_agent: str, secret: str | None, patience_seconds: float, certificates: ssl.SSLContext
    ) -> None:
        """`secret`: the key, which is replaced in all that is shown."""
        self._certificates = certificates
        self._secret = secret
        self._patience_seconds = patience_seconds
        self._user_agent = user_agent

    def ask(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, message: Any = None) -> Answer:
        """Make a request and read its answer. Of an event stream, read until the answer to `message`.

        Raises:
            Fault
        """
        try:
            with self._response(method, url, headers, message, self._patience_seconds) as response:
                if media_type(response.headers) == EVENT_STREAM and message is not None and "id" in message:
                    body = _answer_on(Stream(response, self._patience_seconds), message["id"])
                else:
                    body = self._whole_body(response)
                return Answer(response.status_code, response.headers, body)
        except TimeoutError:
            text = f"{method} has no answer within {self._patience_seconds:g} s"
            raise Fault(Cause.UNREACHABLE, text) from None

    @contextmanager
    def listen(
        self, url: str, headers: Mapping[str, str] | None = None, silence_seconds: float = 0
    ) -> Iterator[Stream]:
        """Open an event stream with GET. No read waits longer than the patience and `silence_seconds`.

        Raises:
            TimeoutError: its head did not come.
            Fault
        """
        patience = max(self._patience_seconds, silence_seconds)
        headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store", **(headers or {})}
        with self._response("GET", url, headers, None, patience) as response:
            yield Stream(response, self._patience_seconds)

    @contextmanager
    def _response(
        self, method: str, url: str, headers: Mapping[str, str] | None, message: Any, read_seconds: float
    ) -> Iterator[httpx2.Response]:
        timeout = httpx2.Timeout(self._patience_seconds, read=read_seconds)
        content = None if message is None else json.dumps(message).encode()
        fields = {"User-Agent": self._user_agent, **(headers or {})}
        if content is not None:
            fields = {"Content-Type": "application/json", "Accept": ACCEPT_BOTH, **fields}
        try:
            # A client for each request: a proxy's handling of idle connections is not what is examined.
            with (
                httpx2.Client(timeout=timeout, verify=self._certificates, follow_redirects=False) as client,
                client.stream(method, url, headers=fields, content=content) as response,
            ):
                yield response
        except httpx2.ConnectError as error:
            cause = Cause.CERTIFICATE if _is_about_certificate(error) else Cause.UNREACHABLE
            raise Fault(cause, self.shown(str(error)) or "no connection") from None
        except httpx2.ConnectTimeout:
            raise Fault(Cause.UNREACHABLE, f"no connection within {self._patience_seconds:g} s") from None
        except httpx2.TimeoutException:
            raise TimeoutError from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise Fault(Cause.UNREACHABLE, self.shown(f"{type(error).__name__}: {error}")) from None

    def _whole_body(self, response: httpx2.Response) -> bytes:
        deadline = time.monotonic() + self._patience_seconds
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BODY_BYTES or time.monotonic() > deadline:
                raise Fault(Cause.UNEXPECTED, "an answer without end")
        return bytes(body)

    def shown(self, text: str) -> str:
        """`text` from the network as it may be printed: short, without the key and without control characters."""
        if self._secret:
            for form in (self._secret, quote(self._secret, safe=""), quote(self._secret, safe=":")):
                text = text.replace(form, "KEY")
        text = printable(" ".join(text.split()))
        return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


def media_type(headers: httpx2.Headers) -> str:
    """The media type that `headers` name, without parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _answer_on(stream: Stream, request_id: Any) -> bytes:
    """The message on `stream` that answers the request."""
    for name, data in stream.frames():
        if name == "message" and is_answer(data, request_id):
            return data
    raise AssertionError("frames() ends by raising")


def is_answer(data: bytes, request_id: Any) -> bool:
    """Whether `data` is the JSON-RPC answer to the request."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("id") == request_id and "method" not in message


def _frames_of(block: bytes) -> Iterator[tuple[str, bytes]]:
    name, data = "message", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if line.startswith(b":"):
            yield "comment", value
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"data":
            data.append(value)
    if data:
        yield name, b"\n".join(data)


def _is_about_certificate(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return True
        seen = seen.__cause__ or seen.__context__
    return "certificate" in str(error).lower()
