"""Sessions go on in another process: hosts inside the test's process share rows. Real deaths: `test_deaths`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.records import restorable_sessions
from gateway.transports.sessions import STOPPED
from tests.fleet.topology import program, running_redis
from tests.support.deadlines import WAIT_SECONDS
from tests.support.in_process import HandshakeClient, InProcessHost, SseClient, host_in_process
from tests.support.memory_rows import Table
from tests.support.server_folders import WriteServer
from tests.support.streamable import initialize_message
from tests.support.wire import request

SERVER = """
    import asyncio
    import json

    from mcp import types
    from mcp.server import Server

    calls = []
    may_end = asyncio.Event()

    def server(user_id, api_key=None):
        told = {"level": None, "subscriptions": [], "initialized": 0}

        async def call_tool(ctx, params):
            calls.append((user_id, str(ctx.request_id)))
            if params.name == "speak":
                await ctx.session.send_log_message("info", "canary word", related_request_id=ctx.request_id)
                await may_end.wait()
            if params.name == "hold":
                await may_end.wait()
            if params.name == "release":
                may_end.set()
            if params.name == "notify":
                await ctx.session.send_resource_updated("note://1")
            client = ctx.session.client_params.client_info.name
            text = json.dumps({**told, "client": client, "calls": calls})
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

        async def set_level(ctx, params):
            told["level"] = params.level
            return types.EmptyResult()

        async def subscribe(ctx, params):
            told["subscriptions"].append(str(params.uri))
            return types.EmptyResult()

        async def unsubscribe(ctx, params):
            told["subscriptions"].remove(str(params.uri))
            return types.EmptyResult()

        return Server(
            "scribe", version="1", on_call_tool=call_tool, on_set_logging_level=set_level,
            on_subscribe_resource=subscribe, on_unsubscribe_resource=unsubscribe,
        )

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""

TARGET = "/scribe/ada:canary-key-of-ada"
AGENT = {"User-Agent": "node"}
GONE = '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Session not found or expired"}}'


pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")
"""Log levels and subscriptions belong to the handshake era."""


async def reached(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - a thread brings it about
            await asyncio.sleep(0.005)


class Processes:
    """Hosts that share rows, as processes of one machine do."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.table = Table()
        self._folder = folder
        self._stack = stack

    async def start(self) -> InProcessHost:
        process = await self._stack.enter_async_context(host_in_process(self._folder))
        restorable = process.host.restorable
        restorable._rows = self.table.of(process.host.recorder.process_id)
        restorable.start()
        if process.host.shared_events is not None:
            process.host.shared_events.start()
        return process

    async def until_written(self, count: int = 1) -> None:
        rows = self.table.rows
        await reached(lambda: len(rows) == count and all(row.is_initialized for row in list(rows.values())))


@pytest.fixture
async def processes(write_server: WriteServer) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        yield Processes(write_server("scribe", SERVER), stack)


def on(process: InProcessHost, client: HandshakeClient) -> HandshakeClient:
    """The same client, whose next requests reach another process."""
    moved = HandshakeClient.__new__(HandshakeClient)
    moved.__dict__.update(client.__dict__)
    moved._host = process
    return moved


async def told(client: HandshakeClient | SseClient, tool: str = "look") -> Any:
    return json.loads(await client.call(tool))


async def ask(client: HandshakeClient, method: str, params: Any) -> None:
    reply = await client.post(request(method, params, f"{method}-{time.monotonic_ns()}")).reply()
    assert "result" in reply.json, reply


async def test_session_goes_on_in_another_process_with_all_that_its_client_told(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await ask(client, "logging/setLevel", {"level": "warning"})
    for uri in ("note://1", "note://2"):
        await ask(client, "resources/subscribe", {"uri": uri})
    await ask(client, "resources/unsubscribe", {"uri": "note://1"})
    await reached(lambda: '["note://2"]' in processes.table.texts())
    found = await told(on(second, client))
    assert (found["level"], found["subscriptions"], found["client"]) == ("warning", ["note://2"], "wire")
    (session,) = second.host.sessions
    assert session.id == client.id
    assert session.row_id in processes.table.rows
    assert session.protocol_version == client.headers["MCP-Protocol-Version"]


async def test_requests_that_come_at_once_restore_a_session_once(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    moved = on(second, client)
    stream, *calls = [moved.get(), *(moved.start("look") for _ in range(5))]
    assert [(await call.reply()).status for call in calls] == [200] * 5
    assert await stream.status() == 200
    assert processes.table.look_ups == 1
    assert len(second.host.sessions) == 1


async def test_session_opened_a_moment_ago_is_found_by_another_process(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    assert (await told(on(second, client)))["client"] == "wire"


async def test_session_goes_on_after_its_process_stopped_in_order(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    for session in first.host.sessions:
        session.end(STOPPED)
    assert (await told(on(second, client)))["client"] == "wire"


@pytest.mark.parametrize("way", ["deleted", "ended by an operator", "its key is no longer valid", "idle"])
async def test_session_that_is_over_is_answered_as_one_that_never_was(processes: Processes, way: str) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    if way == "deleted":
        assert await client.delete() == 200
    else:
        for session in first.host.sessions:
            session.end(way)
    assert (await client.start("look").reply()).body.decode() == GONE
    await reached(lambda: not processes.table.rows)
    for process in (first, second):
        for exchange in (on(process, client).start("look"), on(process, client).get()):
            reply = await exchange.reply()
            assert (reply.status, reply.body.decode()) == (404, GONE)
    assert not len(second.host.sessions)


async def test_ids_of_others_and_forged_ids_cost_no_look_up(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    forged = client.id[:-1] + ("0" if client.id[-1] != "0" else "1")
    for target, session_id in (
        ("/scribe/bob:canary-key-of-ada", client.id),
        ("/scribe/ada:another", client.id),
        ("/scribe/ada", client.id),
        (TARGET, forged),
        (TARGET, "0" * 32),
        (TARGET, ""),
        (TARGET, client.id + "0"),
        (TARGET, "é" * 64),
    ):
        headers = {"Mcp-Session-Id": session_id.encode().decode("latin-1").encode("ascii", "replace").decode()}
        if session_id:
            reply = await second.post(target, request("ping", None, 1), headers).reply()
            assert (reply.status, reply.body.decode()) == (404, GONE)
    assert processes.table.look_ups == 0


async def test_unreachable_rows_are_answered_503_and_known_sessions_go_on(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    processes.table.is_away = True
    reply = await on(second, client).start("look").reply()
    assert (reply.status, "retry-after" in reply.headers) == (503, True)
    assert (await told(client))["client"] == "wire"
    opened_meanwhile = await first.initialize("/scribe/bob:key")
    processes.table.is_away = False
    assert (await told(on(second, client)))["client"] == "wire"
    await processes.until_written(2)
    assert (await told(on(second, opened_meanwhile)))["client"] == "wire"


async def test_process_that_lost_a_session_drops_its_copy_once_its_calls_are_answered(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    held = client.start("hold")
    await reached(lambda: any(session.in_flight for session in first.host.sessions))
    await told(on(second, client))
    taken = processes.table.of(first.host.recorder.process_id).taken_by_others(60)
    first.host.restorable._end_superseded(taken)
    assert len(first.host.sessions) == 1
    await told(client, "release")
    assert (await held.reply()).status == 200
    first.host.restorable._end_superseded(taken)
    assert not len(first.host.sessions)
    # What the first one does now changes nothing for the second.
    await asyncio.to_thread(first.host.restorable.stop)
    assert processes.table.rows
    assert (await told(on(second, client)))["client"] == "wire"


async def test_standalone_stream_goes_on_and_says_that_lists_may_have_changed(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    stream = client.get()
    place = (await stream.event()).id
    await processes.until_written()
    resumed = on(second, client).get(place)
    methods = [(await resumed.message())["method"] for _ in range(3)]
    assert methods == [f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")]
    await told(on(second, client), "notify")
    assert (await resumed.message())["method"] == "notifications/resources/updated"


@pytest.mark.parametrize("event_id", ["3-1", "0-999", "1-2000000000", "x", "0-0"])
async def test_stream_of_a_call_that_died_is_not_resumed(processes: Processes, event_id: str) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    reply = on(second, client).get(event_id)
    if event_id == "0-999":  # of the standalone stream: an event that may have been
        assert await reply.status() == 200
    else:
        assert await reply.status() == 404


@pytest.fixture
def redis_url(settings: Any, tmp_path: Path) -> Iterator[str]:
    if program("redis-server") is None:
        pytest.skip("NOT TESTED: events in Redis: apt-get install redis-server")
    with running_redis(tmp_path, "127.0.0.1") as (port, _):
        settings.GUMCP_REDIS_URL = f"redis://127.0.0.1:{port}/0"
        yield settings.GUMCP_REDIS_URL


async def cut_call(process: InProcessHost, client: HandshakeClient) -> str:
    """Call a tool that says something and goes on; leave, and return the id of the first event."""
    call = client.start("speak")
    place = (await call.event()).id
    assert place is not None
    assert (await call.message())["params"]["data"] == "canary word"
    call.leave()
    shared = process.host.shared_events
    assert shared is not None
    await reached(lambda: shared._client.exists(f"gumcp:alive:{shared._holder}"))
    return place


async def test_call_that_another_process_still_runs_is_resumed_and_answered(
    redis_url: str, processes: Processes
) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    resumed = on(second, client).get(await cut_call(first, client))
    assert (await resumed.message())["params"]["data"] == "canary word"
    await told(client, "release")
    answer = await resumed.message()
    assert answer["result"]["content"]
    assert (await resumed.reply()).body == b""


async def test_call_whose_process_has_died_is_resumed_and_ends_with_an_error(
    redis_url: str, processes: Processes
) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    await processes.until_written()
    place = await cut_call(first, client)
    shared = first.host.shared_events
    assert shared is not None
    await asyncio.to_thread(shared.stop)
    with redis.Redis.from_url(redis_url) as client_of_redis:
        client_of_redis.delete(f"gumcp:alive:{shared._holder}")
        kept = [client_of_redis.dump(key) for key in client_of_redis.keys("gumcp:events:*")]
    assert kept
    assert not any(secret in dump for dump in kept for secret in (b"canary", client.id.encode()))
    resumed = on(second, client).get(place)
    assert (await resumed.message())["params"]["data"] == "canary word"
    assert (await resumed.message())["error"]["code"] == -32000
    await told(client, "release")


async def test_events_of_the_standalone_stream_are_not_missed(redis_url: str, processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    stream = client.get()
    place = (await stream.event()).id
    await processes.until_written()
    await told(client, "notify")
    assert (await stream.message())["method"] == "notifications/resources/updated"
    await asyncio.to_thread(first.host.shared_events.stop)  # type: ignore[union-attr]
    resumed = on(second, client).get(place)
    methods = [(await resumed.message())["method"] for _ in range(4)]
    assert methods[0] == "notifications/resources/updated"
    assert "notifications/tools/list_changed" in methods[1:]


async def test_no_row_holds_a_key_or_a_whole_session_id(processes: Processes) -> None:
    first = await processes.start()
    client = await first.initialize(TARGET)
    stream = await first.open_sse(TARGET, AGENT)
    await stream.initialize()
    await ask(client, "resources/subscribe", {"uri": "note://canary-key-of-ada"})
    await processes.until_written(2)
    texts = processes.table.texts()
    for secret in ("canary", client.id, stream.endpoint.partition("session_id=")[2]):
        assert secret not in texts


async def test_session_whose_initialize_has_the_key_is_not_kept(processes: Processes) -> None:
    first = await processes.start()
    message = initialize_message("2025-11-25")
    message["params"]["clientInfo"]["title"] = "canary-key-of-ada"
    assert (await first.post(TARGET, message).reply()).status == 200
    await first.initialize("/scribe/bob:key")
    await processes.until_written()
    assert "canary" not in processes.table.texts()


async def test_sse_client_that_comes_back_without_initialize_is_served(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    lost = await first.open_sse(TARGET, AGENT)
    await lost.initialize()
    await lost.request("logging/setLevel", {"level": "error"})
    await processes.until_written()
    for session in first.host.sessions:
        session.end(STOPPED)
    await reached(lambda: all(row.lost_at and row.log_level for row in processes.table.rows.values()))
    stream = await second.open_sse(TARGET, AGENT)
    # Several at once, as a client does that had calls waiting.
    exchanges = [stream.post(request("tools/call", {"name": "look"}, number)) for number in (1, 2, 3)]
    assert [(await exchange.reply()).status for exchange in exchanges] == [202] * 3
    found = {}
    while len(found) < 3:
        message = await stream.stream.message()
        if "id" in message:
            found[message["id"]] = json.loads(message["result"]["content"][0]["text"])
    assert sorted(found) == [1, 2, 3]
    assert (found[1]["level"], found[1]["client"]) == ("error", "wire")


@pytest.mark.parametrize("who", ["another user", "another key", "another program", "nobody"])
async def test_sse_client_is_not_taken_for_another(processes: Processes, who: str) -> None:
    first, second = await processes.start(), await processes.start()
    lost = await first.open_sse(TARGET, AGENT)
    await lost.initialize()
    await processes.until_written()
    target = {"another user": "/scribe/bob:canary-key-of-ada", "another key": "/scribe/ada:other"}.get(who, TARGET)
    agent = {"another program": {"User-Agent": "curl"}, "nobody": {}}.get(who, AGENT)
    stream = await second.open_sse(target, agent)
    assert "error" in await stream.request("tools/call", {"name": "look"})


async def test_sse_client_that_initializes_gets_a_session_of_its_own(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    lost = await first.open_sse(TARGET, AGENT)
    await lost.initialize()
    await lost.request("logging/setLevel", {"level": "error"})
    await processes.until_written()
    stream = await second.open_sse(TARGET, AGENT)
    await stream.initialize()
    assert (await told(stream))["level"] is None


async def test_post_to_a_dead_stream_is_answered_404(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    lost = await first.open_sse(TARGET, AGENT)
    await lost.initialize()
    await processes.until_written()
    reply = await second.post(lost.endpoint, request("ping", None, 1)).reply()
    assert (reply.status, reply.json) == (404, {"error": "Session not found or expired"})


async def test_nothing_is_written_or_restored_where_that_is_switched_off(processes: Processes, settings: Any) -> None:
    settings.GUMCP_RESTORE_SESSIONS = False
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    assert len(client.id) == 32
    assert (await on(second, client).start("look").reply()).body.decode() == GONE
    assert not processes.table.rows


async def test_request_state_of_one_process_is_good_in_another(processes: Processes) -> None:
    first, second = await processes.start(), await processes.start()
    sealing, unsealing = (
        process.host.instances.dependencies("scribe").request_state.codec for process in (first, second)
    )
    assert unsealing.unseal(sealing.seal(b"round 1")) == b"round 1"


async def test_changes_that_wait_for_the_database_are_bounded(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorable_sessions, "MAX_WAITING", 2)
    monkeypatch.setattr(restorable_sessions, "ROUND_SECONDS", 0.05)
    first, second = await processes.start(), await processes.start()
    processes.table.is_away = True
    clients = [await first.initialize(f"/scribe/user-{number}:key") for number in range(4)]
    await reached(lambda: first.host.restorable._outage.is_present)
    assert len(first.host.restorable._changed) <= 2
    processes.table.is_away = False
    await processes.until_written(4)  # all that are open are written once the database is back
    assert (await told(on(second, clients[0])))["client"] == "wire"
    processes.table.is_away = True
    for client in clients[1:]:
        assert await client.delete() == 200
    assert len(first.host.restorable._over) <= 2


async def test_session_with_more_subscriptions_than_may_wait_goes_on(processes: Processes, settings: Any) -> None:
    first, second = await processes.start(), await processes.start()
    client = await first.initialize(TARGET)
    for number in range(5):
        await ask(client, "resources/subscribe", {"uri": f"note://{number}"})
    await reached(lambda: "note://4" in processes.table.texts())
    settings.GUMCP_MAX_SESSION_BACKLOG = 3
    found = await told(on(second, client))
    assert found["subscriptions"] == ["note://0", "note://1"]
