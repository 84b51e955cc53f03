"""The examples of `docs/asking-clients.md` ask clients of both kinds, on every path that the page describes."""

import re
from pathlib import Path
from typing import Any

import pytest
from mcp import types
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types.jsonrpc import MISSING_REQUIRED_CLIENT_CAPABILITY

from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.discovery import load_server
from gateway.catalog.factories import make
from tests.support.server_folders import WriteServer

PAGE = (Path(__file__).parents[1] / "docs" / "asking-clients.md").read_text(encoding="utf-8")
WITH_MCPSERVER, ASKING, WITH_SERVER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(params=["MCPServer", "Server"])
def servers(request: pytest.FixtureRequest, write_server: WriteServer) -> Path:
    """A directory with one of the page's two servers."""
    if request.param == "MCPServer":
        return write_server("parcels", WITH_MCPSERVER)
    directory = write_server("parcels", WITH_SERVER)
    (directory / "parcels" / "asking.py").write_text(ASKING)
    return directory


async def call(directory: Path, mode: str, action: str) -> tuple[str, list[str]]:
    """Return what the tool answered, and what it asked."""
    asked: list[str] = []

    async def fill_in(context: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        content = {"street": "5 High Street"} if action == "accept" else None
        return types.ElicitResult(action=action, content=content)  # type: ignore[arg-type]

    async def write(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        asked.append(params.messages[0].content.text)  # type: ignore[union-attr]
        return types.CreateMessageResult(role="assistant", content=types.TextContent(text="Enjoy!"), model="m")

    definition = load_server("parcels", [directory])
    assert isinstance(definition, ServerDefinition), definition
    server, _ = await make(definition.style, "ada", None)
    async with Client(server, mode=mode, elicitation_callback=fill_in, sampling_callback=write) as client:
        result = await client.call_tool("send", {"parcel": "books"})
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text, asked


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_example_asks_clients_with_and_without_a_handshake(servers: Path, mode: str) -> None:
    text, asked = await call(servers, mode, "accept")
    assert text == "books goes to 5 High Street: Enjoy!"
    assert asked == ["Where does books go?", "Write a line to go with books."]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_example_takes_no_for_an_answer(servers: Path, mode: str) -> None:
    text, _ = await call(servers, mode, "decline")
    assert text == "books stays here."


async def test_client_that_cannot_be_asked_gets_an_error(servers: Path) -> None:
    definition = load_server("parcels", [servers])
    assert isinstance(definition, ServerDefinition)
    for mode in ("legacy", "auto"):
        server, _ = await make(definition.style, "ada", None)
        async with Client(server, mode=mode) as client:
            with pytest.raises(MCPError) as raised:
                await client.call_tool("send", {"parcel": "books"})
        assert raised.value.code == MISSING_REQUIRED_CLIENT_CAPABILITY
        assert "elicitation" in raised.value.data["requiredCapabilities"]


def test_helper_is_short() -> None:
    assert len(ASKING.splitlines()) < 60
