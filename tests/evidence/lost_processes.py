"""A worker is killed with 400 sessions, all workers are replaced under load, everything is killed: sessions go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
from mcp import Client

from tests.support import host_process
from tests.support.host_process import HostProcess, running_host, workers_of
from tests.support.processes import ROOT, free_port, migrate, until
from tests.support.server_folders import write_main
from tests.support.streamable import ACCEPT_BOTH, initialize_message
from tests.support.wire import JSON, tool_call

SESSIONS = 400
"""Half of them HTTP+SSE."""

PAUSE_SECONDS = 2.0
"""How long each of them waits between its calls."""

PYTHON_CLIENTS, TYPESCRIPT_CLIENTS, LONG_CALLS = 20, 5, 10
LONG_SECONDS = 15.0

SERVER = """
    import asyncio
    from pathlib import Path

    from mcp import types
    from mcp.server import Server

    calls = Path(__file__).parent.parent.parent / "calls"

    def server(user_id, api_key=None):
        async def call_tool(ctx, params):
            with calls.open("a") as file:
                file.write(params.arguments["number"] + "\\n")
            await asyncio.sleep(params.arguments.get("seconds", 0))
            return types.CallToolResult(content=[types.TextContent(type="text", text=params.arguments["number"])])

        async def list_tools(ctx, params):
            return types.ListToolsResult(tools=[types.Tool(name="file", input_schema={"type": "object"})])

        return Server("clerk", version="1", on_call_tool=call_tool, on_list_tools=list_tools)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


def run(asgi_server: str) -> bool:
    if asgi_server != "daphne":
        print("  workers are our Daphne's")
        return True
    with tempfile.TemporaryDirectory(prefix="gumcp-lost-") as name:
        folder = Path(name)
        write_main(folder / "servers", "clerk", SERVER)
        migrate_into(folder / "data")
        holds = [asyncio.run(part(folder)) for part in (_one_worker, _deploy, _everything)]
        numbers = Counter((folder / "calls").read_text().split())
        repeated = [number for number, count in numbers.items() if count > 1]
        print(f"  {len(numbers)} calls reached a server, {len(repeated)} of them twice")
    return all(holds) and not repeated


def migrate_into(data: Path) -> None:
    data.mkdir()
    migrate(data)


@contextlib.contextmanager
def _host(folder: Path, asgi_server: str, **settings: str) -> Iterator[HostProcess]:
    with running_host(
        folder / "data", None, asgi_server=asgi_server, server_dirs=folder / "servers", **settings
    ) as host:
        if asgi_server == "workers":
            until(lambda: "serves with 2 workers" in host.log())
        yield host


class Caller:
    """One session that is called now and then, on connections of its own."""

    def __init__(self, http: httpx2.AsyncClient, host: HostProcess, transport: str, number: int) -> None:
        self._http = http
        self.transport = transport
        self.name = f"{transport}-{number}"
        self._base = host.base_url
        self._url = host.url("clerk", f"{self.name}:key-of-{self.name}")
        self._number = 0
        self._headers: dict[str, str] = {}
        self._endpoint = ""
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._reader: asyncio.Task[None] | None = None
        self.failures: list[tuple[float, str]] = []
        self.answered: list[float] = []

    async def open(self) -> None:
        if self.transport == "http":
            reply = await self._http.post(self._url, json=initialize_message(), headers=ACCEPT_BOTH)
            self._headers = {"Mcp-Session-Id": reply.headers["mcp-session-id"]}
            await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        else:
            await self._connect()
            await self._ask(initialize_message(request_id=f"{self.name}-init"))
            await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def _connect(self) -> None:
        opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(opened))
        self._endpoint = self._base + await asyncio.wait_for(opened, 20)

    async def _read(self, opened: asyncio.Future[str]) -> None:
        event = ""
        try:
            headers = {"Accept": "text/event-stream"}
            async with self._http.stream("GET", self._url, headers=headers, timeout=None) as response:
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        event = line[7:]
                    elif line.startswith("data: ") and event == "endpoint":
                        opened.set_result(line[6:])
                    elif line.startswith("data: ") and "id" in (message := json.loads(line[6:])):
                        answer = self._answers.pop(message["id"], None)
                        if answer is not None:
                            answer.set_result(message)
            raise ConnectionError("the stream ended")
        except Exception as error:
            for answer in [*self._answers.values(), *([] if opened.done() else [opened])]:
                answer.set_exception(error)
                answer.exception()  # whoever waited may have given up
            self._answers.clear()

    async def _post(self, message: Any) -> Any:
        url, headers = (self._url, ACCEPT_BOTH) if self.transport == "http" else (self._endpoint, JSON)
        reply = await self._http.post(url, json=message, headers={**headers, **self._headers}, timeout=20)
        if reply.status_code not in (200, 202):
            raise ConnectionError(f"status {reply.status_code}")
        return reply

    async def _ask(self, message: Any) -> Any:
        if self.transport == "http":
            return (await self._post(message)).json()
        answer = self._answers[message["id"]] = asyncio.get_running_loop().create_future()
        try:
            await self._post(message)
        except BaseException:
            self._answers.pop(message["id"], None)
            raise
        return await asyncio.wait_for(answer, 20)

    async def call(self) -> None:
        self._number += 1
        number = f"{self.name}-{self._number}"
        try:
            if self._reader is not None and self._reader.done():
                await self._connect()
            reply = await self._ask(tool_call(number, "file", number=number))
            if "result" not in reply:
                raise ConnectionError(str(reply)[:100])
            self.answered.append(time.monotonic())
        except Exception as error:
            self.failures.append((time.monotonic(), f"{type(error).__name__}: {error}"[:100]))

    async def go_on(self, is_over: asyncio.Event, delay: float) -> None:
        await asyncio.sleep(delay)
        while not is_over.is_set():
            await self.call()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), PAUSE_SECONDS)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


async def _one_worker(folder: Path) -> bool:
    """Kill one of two workers."""
    with _host(folder, "workers") as host:
        # A connection for each request: one that a client keeps may be the killed worker's, whoever owns the client.
        limits = httpx2.Limits(max_keepalive_connections=0, max_connections=None)
        async with httpx2.AsyncClient(limits=limits, headers={"User-Agent": "evidence"}, timeout=30) as http:
            callers = [
                Caller(http, host, transport, number)
                for number in range(SESSIONS // 2)
                for transport in ("http", "sse")
            ]
            for caller in callers:
                await caller.open()
            is_over = asyncio.Event()
            tasks = [
                asyncio.create_task(caller.go_on(is_over, index * PAUSE_SECONDS / SESSIONS))
                for index, caller in enumerate(callers)
            ]
            await asyncio.sleep(2 * PAUSE_SECONDS)
            victim = workers_of(host)[0]
            killed = time.monotonic()
            victim.kill()
            await _until(lambda: "Listening" in host.log().partition("ended with status -9")[2])
            restarted = time.monotonic()
            await asyncio.sleep(3 * PAUSE_SECONDS)
            is_over.set()
            await asyncio.gather(*tasks)
            for caller in callers:
                await caller.close()
        restored = {
            transport: host.metric("gumcp_sessions_restored_total", transport=transport)
            for transport in ("streamable-http", "sse")
        }
    failed = [caller for caller in callers if caller.failures]
    most = max((len(caller.failures) for caller in callers), default=0)
    said = Counter(text for caller in callers for _, text in caller.failures)
    served = max(min(at for at in caller.answered if at > restarted) - restarted for caller in callers)
    print(
        f"  one worker killed: started again after {restarted - killed:.1f} s; {SESSIONS} sessions, restored {restored}"
    )
    print(
        f"  {len(failed)} clients had an error, at most {most}; all were served {served:.1f} s after the restart at the"
    )
    print(f"  latest, calling every {PAUSE_SECONDS:.0f} s. Errors: {dict(said)}")
    # A message for a stream that has died is answered 404: its client opens another stream.
    has_lost = any("404" in text for caller in callers if caller.transport == "http" for _, text in caller.failures)
    return most <= 1 and served <= 3 + PAUSE_SECONDS and not has_lost


async def _deploy(folder: Path) -> bool:
    """Replace all workers under load."""
    with _host(folder, "workers", GUMCP_SHUTDOWN_GRACE_SECONDS="30s") as host:
        is_over = asyncio.Event()
        failures: list[str] = []
        answered = Counter[str]()

        async def python(name: str, seconds: float = 0.0) -> None:
            url = host.url("clerk", f"{name}:key-of-{name}")
            async with Client(url, mode="legacy", cache=None, read_timeout_seconds=60) as client:
                number = 0
                while not is_over.is_set():
                    number += 1
                    arguments = {"number": f"{name}-{number}", "seconds": seconds}
                    try:
                        await client.call_tool("file", arguments)
                        answered[name] += 1
                    except Exception as error:
                        failures.append(f"{name}: {error!r}"[:200])
                    if seconds:
                        return
                    await asyncio.sleep(0.1)

        scripts = [
            _typescript(host.url("clerk", f"ts-{n}:key"), "http", f"ts-{n}", 40) for n in range(TYPESCRIPT_CLIENTS)
        ]
        tasks = [asyncio.create_task(python(f"py-{number}")) for number in range(PYTHON_CLIENTS)]
        await asyncio.sleep(8)
        long = [asyncio.create_task(python(f"long-{number}", LONG_SECONDS)) for number in range(LONG_CALLS)]
        await asyncio.sleep(1)
        os.kill(host.pid, signal.SIGHUP)
        await _until(lambda: "The reload is done" in host.log())
        await asyncio.gather(*long)
        results = [await asyncio.to_thread(_result, script) for script in scripts]
        is_over.set()
        await asyncio.gather(*tasks)
    of_long = sum(answered[f"long-{number}"] for number in range(LONG_CALLS))
    of_typescript = sum(result["answered"] for result in results)
    failures += [text for result in results for text in result["failures"]]
    print(
        f"  all workers replaced: {answered.total()} calls of {PYTHON_CLIENTS} Python clients and {of_typescript} of "
        f"{TYPESCRIPT_CLIENTS} TypeScript clients answered, {of_long} of {LONG_CALLS} calls of {LONG_SECONDS:.0f} s; "
        f"{len(failures)} failed {failures[:3]}"
    )
    return not failures and of_long == LONG_CALLS


async def _everything(folder: Path) -> bool:
    """Kill a host that is one process, and start it again."""
    port = free_port()
    holds = True
    with mock.patch.object(host_process, "free_port", return_value=port), contextlib.ExitStack() as stack:
        first = stack.enter_context(_host(folder, "daphne", GUMCP_METRICS_PORT="0"))
        scripts = {}
        for kind in ("http", "sse"):
            scripts[kind] = _typescript(first.url("clerk", f"again-{kind}:key"), kind, f"again-{kind}", 30)
        url = first.url("clerk", "again:key")
        async with Client(url, mode="legacy", cache=None, read_timeout_seconds=20) as client:
            await client.call_tool("file", {"number": "again-1"})
            await asyncio.sleep(6)
            first.kill()
            with _host(folder, "daphne", GUMCP_METRICS_PORT="0"):
                await client.call_tool("file", {"number": "again-2"})
                print("  everything killed: the Python client goes on with its session")
                for kind, script in scripts.items():
                    result = await asyncio.to_thread(_result, script)
                    said = dict(Counter(text[:60] for text in result["failures"]))
                    print(f"  TypeScript client over {kind}: {result['answered']} calls answered, not answered: {said}")
                    holds &= result["silentSeconds"] < 5 and result["answered"] > 0
    return holds


async def _until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - another process brings it about
        await asyncio.sleep(0.05)


def _typescript(url: str, kind: str, name: str, seconds: float) -> subprocess.Popen[str]:
    node = shutil.which("node")
    assert node is not None, "needs Node.js, and `make matrix` once"
    script = ROOT / "tests" / "matrix" / "clients" / "typescript_caller.mjs"
    return subprocess.Popen([node, script, url, kind, name, str(seconds)], stdout=subprocess.PIPE, text=True)


def _result(script: subprocess.Popen[str]) -> Any:
    output, _ = script.communicate(timeout=120)
    return json.loads(output)
