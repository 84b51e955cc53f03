"""What a process costs its clients that dies, is replaced, or is killed with all others: no session, no second call."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import pytest
from mcp import Client

from gateway.fleet.relay import HOLD_SECONDS
from tests.support import host_process
from tests.support.host_process import HostProcess, StartHost, workers_of
from tests.support.processes import free_port, until
from tests.support.server_folders import write_main
from tests.support.streamable import ACCEPT_BOTH, HandshakeSession, Request, StatelessClient
from tests.support.wire import SseStream

SERVER: Final = """
    import asyncio
    from pathlib import Path

    from mcp import types
    from mcp.server import Server

    calls = Path(__file__).parent.parent.parent / "calls"
    may_end = calls.with_name("may-end")

    def server(user_id, api_key=None):
        async def call_tool(ctx, params):
            with calls.open("a") as file:
                file.write(params.arguments["number"] + "\\n")
            while params.arguments.get("waits") and not may_end.exists():
                await asyncio.sleep(0.05)
            return types.CallToolResult(content=[types.TextContent(type="text", text=params.arguments["number"])])

        async def list_tools(ctx, params):
            return types.ListToolsResult(tools=[types.Tool(name="file", input_schema={"type": "object"})])

        return Server("clerk", version="1", on_call_tool=call_tool, on_list_tools=list_tools)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""

AGENT: Final = {"User-Agent": "node"}
RESTART_SECONDS: Final = 15.0
"""How long a worker may take to start on a busy machine."""

FAILURES: Final = (OSError, HTTPException, AssertionError)


class Folder:
    """A host's files: its server, what that was called with, its database."""

    def __init__(self, path: Path) -> None:
        self.servers = write_main(path / "servers", "clerk", SERVER).parent
        self.data = path / "data"
        self._calls = path / "calls"
        self.may_end = path / "may-end"
        """Calls that wait go on once this file is there."""

    def repeated_calls(self) -> list[str]:
        return [number for number, count in Counter(self._calls.read_text().split()).items() if count > 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("deaths"))


@pytest.fixture(scope="module")
def fleet(start_host: StartHost, folder: Folder) -> Iterator[HostProcess]:
    options = {"GUMCP_SHUTDOWN_GRACE_SECONDS": "40s"}
    with start_host(asgi_server="workers", server_dirs=folder.servers, data_dir=folder.data, **options) as host:
        until(lambda: "serves with 2 workers" in host.log())
        yield host


class Caller:
    """A client that calls again and again, each time with another number."""

    def __init__(self, host: HostProcess, transport: str, name: str) -> None:
        self._host = host
        self.transport = transport
        self.name = name
        self._numbers = itertools.count(1)
        self.failures: list[str] = []
        self.answered = 0
        self._session: Any = None
        if transport == "http":
            self._session = HandshakeSession(host, "clerk", f"{name}:key-of-{name}")
        elif transport == "sse":
            self._session = self._open_stream()
            self._session.initialize()
        else:
            self._session = StatelessClient(host, "clerk", f"{name}:key-of-{name}")

    def _open_stream(self) -> SseStream:
        return self._host.stream("clerk", f"{self.name}:key-of-{self.name}", AGENT)

    def call(self, *, waits: bool = False) -> None:
        number = f"{self.name}-{next(self._numbers)}"
        try:
            if self.transport == "sse":
                if self._session.closed_at is not None or self._session.status != 200:
                    # As the TypeScript SDK: a new stream, and no `initialize`.
                    self._session.close()
                    self._session = self._open_stream()
                    assert self._session.status == 200
                text = self._session.call("file", request_id=number, number=number)
            else:
                with self._session.start("file", number=number, waits=waits) as under_way:
                    under_way._connection.settimeout(3 * RESTART_SECONDS)
                    text = under_way.text()
            assert text == number
            self.answered += 1
        except FAILURES as error:
            self.failures.append(f"{type(error).__name__}: {error}"[:200])

    def close(self) -> None:
        if self.transport == "sse":
            self._session.close()


@contextlib.contextmanager
def calling(host: HostProcess, name: str, *transports: str, of_each: int) -> Iterator[list[Caller]]:
    """Clients that call all the time inside the block."""
    callers = [
        Caller(host, transport, f"{name}-{transport}-{number}") for transport in transports for number in range(of_each)
    ]
    is_over = threading.Event()

    def go_on(caller: Caller) -> None:
        while not is_over.wait(0.1):
            caller.call()

    threads = [threading.Thread(target=go_on, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        for caller in callers:
            caller.close()


def all_answered(callers: list[Caller], times: int = 3) -> Callable[[], bool]:
    """Whether all of them have got so many more answers than now."""
    goals = [(caller, caller.answered + times) for caller in callers]
    return lambda: all(caller.answered >= goal for caller, goal in goals)


def test_killed_worker_costs_each_client_one_error_at_most_and_no_session(fleet: HostProcess, folder: Folder) -> None:
    with calling(fleet, "death", "http", "sse", "stateless", of_each=4) as callers:
        until(all_answered(callers))
        victim, survivor = workers_of(fleet)
        log, killed = len(fleet.log()), time.monotonic()
        victim.kill()
        until(lambda: "Listening" in fleet.log()[log:], RESTART_SECONDS)
        seconds = time.monotonic() - killed
        until(all_answered(callers))
    assert survivor in workers_of(fleet)
    failures = {caller.name: caller.failures for caller in callers if caller.failures}
    # Requests are held for so long that a worker starts meanwhile, if the machine is not very busy.
    allowed = 1 + int(seconds // HOLD_SECONDS)
    assert all(len(texts) <= allowed for texts in failures.values()), failures
    assert "404" not in str({name: texts for name, texts in failures.items() if "http" in name})
    assert folder.repeated_calls() == []
    assert fleet.metric("gumcp_sessions_restored_total", server="clerk") > 0


def test_deploy_under_load_costs_no_call(fleet: HostProcess, folder: Folder) -> None:
    before, log = set(workers_of(fleet)), len(fleet.log())
    with calling(fleet, "deploy", "http", "stateless", of_each=4) as callers:
        waiting = [Caller(fleet, "http", f"waiting-{number}") for number in range(4)]
        threads = [threading.Thread(target=caller.call, kwargs={"waits": True}) for caller in waiting]
        for thread in threads:
            thread.start()
        until(all_answered(callers))
        os.kill(fleet.pid, signal.SIGHUP)
        until(lambda: "The reload is done" in fleet.log()[log:], 2 * RESTART_SECONDS)
        # Their processes have been replaced, and still answer them.
        folder.may_end.touch()
        for thread in threads:
            thread.join()
        until(lambda: not before & set(workers_of(fleet)))
        until(all_answered(callers))
        for caller in waiting:
            caller.call()
    assert [caller.failures for caller in [*callers, *waiting]] == [[]] * 12
    assert [caller.answered for caller in waiting] == [2] * 4
    assert folder.repeated_calls() == []


async def test_sessions_go_on_after_everything_was_killed(
    start_host: StartHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = Folder(tmp_path), free_port()
    monkeypatch.setattr(host_process, "free_port", lambda: port)
    options = {"server_dirs": folder.servers, "data_dir": folder.data, "metrics": False}
    with start_host(**options) as first:
        url = first.url("clerk", "official:key-of-official")
        client = Client(url, mode="legacy", cache=None, read_timeout_seconds=20)
        async with client:
            assert (await client.call_tool("file", {"number": "official-1"})).content
            http, sse, over = (Caller(first, *which) for which in (("http", "h"), ("sse", "s"), ("http", "over")))
            for caller in (http, sse, over):
                caller.call()
            over._session.delete()
            until(lambda: len(first.rows("SELECT id FROM records_restorablesession")) == 3)
            first.kill()
            with start_host(**options) as second:
                official: Any = await client.call_tool("file", {"number": "official-2"})
                assert official.content[0].text == "official-2"
                for caller in (http, sse):
                    caller._host = second
                    caller.call()
                    assert (caller.answered, caller.failures) == (2, [])
                identifier = http._session.id
                answers = [
                    _ask(second, target, session_id)
                    for target, session_id in (
                        ("/clerk/h:key-of-h", "0" * 32),
                        ("/clerk/h:key-of-h", identifier[:-1] + ("0" if identifier[-1] != "0" else "1")),
                        ("/clerk/other:key-of-h", identifier),
                        ("/clerk/over:key-of-over", over._session.id),
                    )
                ]
                assert answers == [answers[0]] * 4
                assert answers[0][0] == 404
                sse.close()
    assert folder.repeated_calls() == []


def _ask(host: HostProcess, target: str, session_id: str) -> tuple[int, list[tuple[str, str]], bytes]:
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    answer = Request(host.port, "POST", target, body, {**ACCEPT_BOTH, "Mcp-Session-Id": session_id}).answer()
    headers = [(name, value) for name, value in answer.headers.items() if name.lower() != "date"]
    return answer.status, headers, answer.body
