"""A host process with our Daphne server and an ASGI application that misbehaves on request.

`python -m tests.serving.host '{"limits": {…}, "server": {…}}'` serves on a free port. What happens inside is told on
standard output, a JSON object a line; standard error carries the log.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
import json
import logging
import re
import socket
import sys
import time
import warnings
from typing import Any
from urllib.parse import parse_qs

warnings.simplefilter("error")
# What Twisted does when it makes a TLS context, and nothing here can help.
warnings.filterwarnings("ignore", "Passing pyOpenSSL", DeprecationWarning)

import daphne.server  # noqa: E402 - installs the reactor, before anything else of Twisted is imported
from daphne.access import AccessLogGenerator  # noqa: E402

from gateway.serving import ServingHooks, ServingLimits  # noqa: E402
from gateway.serving.server import HttpServer  # noqa: E402

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("SEEN", default="nothing")


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class AccessLines:
    """The stream that Daphne's access log writes to."""

    def write(self, line: str) -> None:
        tell(access=line.rstrip("\n"))


class Application:
    """Each path is a behaviour: `/echo` is `do_echo`."""

    def __init__(self) -> None:
        self.server: HttpServer | None = None
        self.draining = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"].split("/")[1].replace("-", "_") or "echo"
        tell(request=scope["path"])
        behaviour = getattr(self, f"do_{name}", self.do_echo)
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
        try:
            await behaviour(scope, receive, send, **query)
        finally:
            tell(ended=scope["path"])

    async def respond(self, send: Any, content: Any, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = b"application/octet-stream" if isinstance(content, bytes) else b"application/json"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def begin(self, send: Any, body: bytes = b"begun\n") -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def do_echo(self, scope: Any, receive: Any, send: Any, **query: str) -> None:
        message = await receive()
        content = {key: scope[key] for key in ("method", "path", "root_path", "http_version", "scheme", "client")}
        content["raw_path"] = scope["raw_path"].decode("latin-1")
        content["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        content["body"] = message["body"].decode("latin-1") if len(message["body"]) < 200 else ""
        content["body_bytes"] = len(message["body"])
        content["body_digest"] = hashlib.sha256(message["body"]).hexdigest()
        await self.respond(send, content)

    async def do_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await self.begin(send)
        left = asyncio.ensure_future(receive())
        drained = asyncio.ensure_future(self.draining.wait())
        await asyncio.wait((left, drained), return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        if left.done():
            again = [await receive() for _ in range(3)]
            tell(left=[left.result()["type"]] + [message["type"] for message in again])
        else:
            left.cancel()
            await send({"type": "http.response.body", "body": b"bye\n"})

    async def do_flood(self, scope: Any, receive: Any, send: Any, megabytes: str) -> None:
        await self.begin(send, b"")
        for sent in range(int(megabytes) * 16):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            if sent % 16 == 15:
                tell(flooded=(sent + 1) // 16)
        await send({"type": "http.response.body"})

    async def do_big(self, scope: Any, receive: Any, send: Any, size: str) -> None:
        await self.respond(send, bytes(int(size)))

    async def do_spin(self, scope: Any, receive: Any, send: Any) -> None:
        await self.begin(send)
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def do_boom(self, scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    async def do_boom_after_start(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("boom")

    async def do_boom_in_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await self.begin(send)
        raise RuntimeError("boom")

    async def do_boom_after_end(self, scope: Any, receive: Any, send: Any) -> None:
        await self.respond(send, "whole")
        raise RuntimeError("boom")

    async def do_forget(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def do_forget_in_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await self.begin(send)

    async def do_split(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-name", b"value\r\nset-cookie: a=b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    async def do_length(self, scope: Any, receive: Any, send: Any, announced: str, sent: str) -> None:
        headers = [(b"content-length", announced.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"a" * (int(sent) - 1)})

    async def do_chunks(self, scope: Any, receive: Any, send: Any) -> None:
        await self.begin(send, b"one")
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async def do_status(self, scope: Any, receive: Any, send: Any, code: str) -> None:
        await send({"type": "http.response.start", "status": int(code), "headers": []})
        await send({"type": "http.response.body"})

    async def do_close(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    async def do_context(self, scope: Any, receive: Any, send: Any) -> None:
        seen = SEEN.get()
        SEEN.set("the request before")
        await self.respond(send, seen)

    async def do_wait(self, scope: Any, receive: Any, send: Any, **query: str) -> None:
        await self.released.wait()
        await self.respond(send, "released")

    async def do_release(self, scope: Any, receive: Any, send: Any) -> None:
        self.released.set()
        await self.respond(send, {"draining": self.draining.is_set()})

    async def do_linger(self, scope: Any, receive: Any, send: Any) -> None:
        await self.respond(send, "done")
        await asyncio.Event().wait()

    async def do_stubborn(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                tell(swallowed=True)

    async def do_block_loop(self, scope: Any, receive: Any, send: Any) -> None:
        tell(blocked=True)
        time.sleep(60)

    async def do_hold_gil(self, scope: Any, receive: Any, send: Any, where: str) -> None:
        """A regular expression that backtracks for hours. It never lets another thread run."""
        tell(blocked=True)
        if where == "loop":
            search_for_ever()
        await asyncio.to_thread(search_for_ever)

    async def do_block_thread(self, scope: Any, receive: Any, send: Any) -> None:
        future = asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
        tell(blocked=True)
        await asyncio.shield(future)

    async def do_state(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.server is not None
        content: dict[str, Any] = {
            "connections": len(self.server.connections),
            "open": len(self.server.http_factory.open),
            "unfinished_bytes": self.server.unfinished_bodies.held_bytes,
        }
        (own,) = (connection for connection in self.server.http_factory.open if connection.client == scope["client"])
        handle = own._socket_transport.socket
        content["options"] = {
            name: handle.getsockopt(level, getattr(socket, name))
            for level, name in (
                (socket.SOL_SOCKET, "SO_KEEPALIVE"),
                (socket.IPPROTO_TCP, "TCP_NODELAY"),
                (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
                (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
                (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
                (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
            )
        }
        await self.respond(send, content)


def search_for_ever() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def hooks_for(application: Application) -> ServingHooks:
    async def on_start() -> None:
        if application.server is not None:
            tell(port=application.server.listening_addresses[0][1])

    def on_drain() -> None:
        tell(hook="drain")
        application.draining.set()

    async def on_stop() -> None:
        await asyncio.sleep(0)
        tell(hook="stop")

    return ServingHooks(
        redact=lambda path: path.replace("secret", "…"),
        on_event=lambda event: tell(event=event),
        on_start=on_start,
        on_drain=on_drain,
        on_stop=on_stop,
    )


def main(options: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    application = Application()
    make_server = functools.partial(
        HttpServer, limits=ServingLimits(**options.get("limits", {})), hooks=hooks_for(application)
    )
    assert issubclass(HttpServer, daphne.server.Server)
    application.server = make_server(
        application=application,
        endpoints=[options.get("endpoint", "tcp:port=0:interface=127.0.0.1")],
        action_logger=AccessLogGenerator(AccessLines()),
        **options.get("server", {}),
    )
    application.server.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
