"""`docs/writing-servers.md`: its example is a working server, and its table names every example of a style."""

import re
from pathlib import Path

from mcp.client import Client
from mcp.types import TextContent

from gateway.catalog.discovery import discover
from gateway.catalog.factories import make
from gateway.conf import GatewaySettings
from tests.support.server_folders import WriteServer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "writing-servers.md").read_text(encoding="utf-8")


async def test_the_complete_server_of_the_page_works_as_it_is(write_server: WriteServer) -> None:
    source = PAGE.partition("## A complete server")[2].partition("```python\n")[2].partition("```")[0]
    (definition,) = discover([write_server("notes", source)]).definitions
    server, options = await make(definition.style, "alice", None)
    async with Client(server) as client:
        for text in ("milk", "bread"):
            result = await client.call_tool("remember", {"text": text})
        refused = await client.call_tool("remember", {})
    assert isinstance(result.content[0], TextContent)
    assert result.content[0].text == "milk\nbread"
    assert refused.is_error
    assert (options.server_name, options.server_version) == ("notes", "1.0.0")


def test_the_table_of_styles_has_every_example_and_no_other() -> None:
    table = PAGE.partition("| example |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(
        path.parent.name for path in (ROOT / "tests" / "servers" / "styles").glob("*/main.py")
    )


def test_every_folder_and_setting_that_the_page_names_exists() -> None:
    for folder in re.findall(r"`(servers/[\w-]+)`", PAGE):
        assert (ROOT / folder).is_dir(), folder
    assert set(re.findall(r"GUMCP_\w+", PAGE)) - set(GatewaySettings.declared()) == set()
