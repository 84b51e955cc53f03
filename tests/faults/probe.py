"""The host's own application with pages that break, and a look inside: `daphne tests.faults.probe:application`.

The pages stand where Django's and the MCP routes do, inside the guard that is under test.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs

from gumcp_site import asgi

STREAM = (b"content-type", b"text/event-stream")
PAGE = (b"content-type", b"text/html")


class Pages:
    """Answers `/boom/…` and `/inside/…` itself and leaves the rest to the host."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        room, _, name = scope["path"].lstrip("/").partition("/")
        if room == "boom":
            await boom(name, send)
        elif room == "inside":
            await self._look(name, scope, send)
        else:
            await self._inner(scope, receive, send)

    async def _look(self, name: str, scope: Any, send: Any) -> None:
        if name == "hold":  # the loop that serves every connection
            time.sleep(float(parse_qs(scope["query_string"].decode())["seconds"][0]))
        # Garbage in cycles is looked for seldom. Here it would count as what a test has left.
        gc.collect()
        host = asgi.host
        seen = {
            "tasks": len(asyncio.all_tasks()),
            "lane_tasks": {lane.name: len(asyncio.all_tasks(lane.loop)) for lane in host.lanes},
            "threads": threading.active_count(),
            "sessions": len(host.sessions),
            "streams": len(host.streams),
            "uses": sum(instance.uses for instance in host.instances),
        }
        body = json.dumps(seen).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def boom(name: str, send: Any) -> None:
    """Fail at a moment of the response."""
    if name != "before":
        await send({"type": "http.response.start", "status": 200, "headers": [STREAM if name == "stream" else PAGE]})
    if name in ("stream", "page"):
        await send({"type": "http.response.body", "body": b"data: half\n\n", "more_body": True})
    if name == "end":
        await send({"type": "http.response.body", "body": b"whole"})
    raise RuntimeError(f"boom {name}")


application = asgi.application
application._http = Pages(application._http)
