"""The official client against a host: what most users of the project will run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.sse import sse_client

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(asgi_server=request.param, server_dirs=f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}") as host:
        yield host


@asynccontextmanager
async def connected(host: HostProcess, server: str, key: str) -> AsyncIterator[ClientSession]:
    async with sse_client(host.url(server, key)) as (reader, writer), ClientSession(reader, writer) as session:
        await session.initialize()
        yield session


def text(result: Any) -> str:
    assert not result.is_error, result
    return str(result.content[0].text)


async def test_client_lists_tools_stores_retrieves_reconnects_and_finds_its_data(host: HostProcess) -> None:
    async with asyncio.timeout(20):
        async with connected(host, "simple-tools-server", "ada:key") as session:
            tools = await session.list_tools()
            assert [tool.name for tool in tools.tools] == ["store-data", "retrieve-data", "list-data"]
            assert text(await session.call_tool("list-data", {})) == "No data stored"
            stored = await session.call_tool("store-data", {"key": "colour", "value": "green"})
            assert text(stored) == "Stored 'colour' with value: green"
        async with connected(host, "simple-tools-server", "ada%3Akey") as session:
            assert text(await session.call_tool("retrieve-data", {"key": "colour"})) == "Value for 'colour': green"
            assert text(await session.call_tool("list-data", {})) == "Stored data:\n- colour: green"
        async with connected(host, "simple-tools-server", "bob:key") as session:
            assert text(await session.call_tool("retrieve-data", {"key": "colour"})) == "Key 'colour' not found"


async def test_many_clients_of_one_key_at_once_are_all_answered(host: HostProcess) -> None:
    async def converse(number: int) -> None:
        async with connected(host, "workshop", "crowd:key") as session:
            texts = [f"{number}.{call}" for call in range(10)]
            answers = await asyncio.gather(*(session.call_tool("echo", {"text": each}) for each in texts))
            assert [text(answer) for answer in answers] == texts

    async with asyncio.timeout(30):
        await asyncio.gather(*(converse(number) for number in range(10)))


async def test_progress_reaches_the_callback(host: HostProcess) -> None:
    seen: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with asyncio.timeout(20), connected(host, "workshop", "ada") as session:
        assert text(await session.call_tool("progress", {"steps": 5}, progress_callback=note)) == "done"
    assert seen == [1, 2, 3, 4, 5]


async def test_time_is_converted_between_zones(host: HostProcess) -> None:
    async with asyncio.timeout(20), connected(host, "time", "ada") as session:
        tools = {tool.name for tool in (await session.list_tools()).tools}
        assert len(tools) >= 2
