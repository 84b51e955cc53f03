"""The client's end of one ASGI exchange, for tests of what sends responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.processes import until


class AsgiClient:
    """Takes what is sent, while it reads, and leaves when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def events(self) -> list[dict[str, str]]:
        """The fields of the events so far; comments and incomplete events are left out."""
        blocks = [block for block in self.body.decode().split("\r\n\r\n")[:-1] if not block.startswith(":")]
        return [dict(line.partition(": ")[::2] for line in block.split("\r\n")) for block in blocks]

    @property
    def messages(self) -> list[Any]:
        """The JSON-RPC messages of the events so far."""
        return [json.loads(event["data"]) for event in self.events if event.get("data")]

    @property
    def is_ended(self) -> bool:
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")

    async def has(self, body: bytes) -> None:
        await asyncio.to_thread(until, lambda: self.body == body)


class HesitantClient(AsgiClient):
    """Takes one message each time that it has a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = asyncio.Semaphore(1)  # for the response's head

    async def send(self, message: Any) -> None:
        await self.turns.acquire()
        await super().send(message)
