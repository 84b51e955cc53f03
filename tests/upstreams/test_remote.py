"""Remote servers of every era in process, and the error and the reason for each URL that is not one."""

import asyncio
import socket
from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from gateway.exceptions import InstanceUnavailable
from tests.support.remote_servers import RemoteServers, remote_servers
from tests.support.upstreams import make_relay, make_supply

HANG_SECONDS = 20


async def call(client: Client) -> str:
    result = await client.call_tool("who", {})
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


def entry(remote: RemoteServers, path: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{remote.url}{path}", "headers": {"X-Key": "${api_key}"}, **more}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize(
    ("path", "kind", "spoken"),
    [("/mcp", "http", "2025-11-25"), ("/modern", "http", "2026-07-28"), ("/sse", "sse", "2025-11-25")],
)
async def test_server_of_each_era_is_served_to_clients_of_each(path: str, kind: str, spoken: str, mode: Any) -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        server = await make_relay(make_supply(entry(remote, path, type=kind)), "ada", "s3cret")
        async with Client(server, mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["who"]
            assert await call(client) == f"{spoken} s3cret"


async def test_session_that_the_server_has_forgotten_is_opened_anew() -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        server = await make_relay(make_supply(entry(remote, "/forgetful")), "ada", "s3cret")
        async with Client(server, mode="legacy") as client:
            await call(client)
            remote.forgets_sessions = True
            with pytest.raises(MCPError):
                await call(client)
            assert await call(client) == "2025-11-25 s3cret"


async def test_redirect_is_followed_within_its_own_origin() -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        server = await make_relay(make_supply(entry(remote, "/moved")), "ada", "s3cret")
        async with Client(server, mode="legacy") as client:
            assert await call(client) == "2025-11-25 s3cret"


async def test_answer_that_unpacks_to_megabytes_of_nothing_is_refused() -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        with pytest.raises(InstanceUnavailable):
            await make_relay(make_supply(entry(remote, "/bomb", type="http")), "ada", "s3cret")


@pytest.mark.parametrize("kind", ["http", "sse"])
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/away", "answered with a redirect, which is followed only within its own address"),
        ("/401", r"refused the credentials \(status 401\)"),
        ("/404", r"has no MCP endpoint at this URL \(status 404\)"),
        ("/429", "has had too many requests"),
        ("/500", r"failed \(status 500\)"),
        ("/page", "answered with a web page"),
        ("/slow", "did not answer in time"),
    ],
)
async def test_url_that_is_not_a_server_is_one_sentence_for_caller_and_operator(
    path: str, sentence: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        supply = make_supply(entry(remote, path, type=kind), startTimeoutSeconds=0.5 if path == "/slow" else 5)
        with pytest.raises(InstanceUnavailable, match=sentence):
            await make_relay(supply, "ada", "s3cret")
    assert sentence.replace("\\", "") in caplog.text
    assert sentence.replace("\\", "") in supply.condition()
    assert "s3cret" not in caplog.text
    assert supply.slots.used == 0
    # A redirect to another origin is not requested, so the headers stay here.
    assert set(remote.paths) == {path}


async def test_server_that_is_down_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(InstanceUnavailable, match="remote server cannot be reached"):
        await make_relay(make_supply({"url": f"http://127.0.0.1:{port}/mcp"}))
    assert "ConnectError" in caplog.text


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"])
async def test_name_that_leads_to_a_metadata_address_is_not_connected_to(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(InstanceUnavailable, match="leads to an address that is refused"):
        await make_relay(make_supply({"url": "http://innocent.example/mcp"}))
    assert "leads to an address that is refused" in caplog.text


async def test_private_address_is_refused_where_the_manifest_says_so() -> None:
    async with asyncio.timeout(HANG_SECONDS), remote_servers() as remote:
        supply = make_supply({"url": f"{remote.other_url}/mcp"}, allowPrivateAddresses=False)
        with pytest.raises(InstanceUnavailable, match="leads to an address that is refused"):
            await make_relay(supply)
        assert remote.paths == []
