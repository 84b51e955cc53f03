"""What `manage.py serve` prints. That it does so once its port is open: `test_commands`."""

import json
from pathlib import Path
from typing import Any

from django.test import override_settings

from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.management.next_steps import next_steps
from tests.support.server_folders import WriteServer


def client_of(text: str) -> Any:
    return json.loads("{" + text.partition("{")[2].rpartition("}")[0] + "}")["mcpServers"]


def registry(write_server: WriteServer) -> Registry:
    write_server("broken", "raise ValueError('half written')")
    directory: Path = write_server("sound")
    (directory / "almost").mkdir(exist_ok=True)
    (directory / "almost" / "server.py").write_text("from mcp.server import MCPServer\nmcp = MCPServer('x')\n")
    return Registry(discover([directory]))


def test_it_names_what_is_served_and_what_is_not(write_server: WriteServer) -> None:
    text = next_steps("127.0.0.1", 8001, registry(write_server))
    assert "guMCP serves 1 servers: sound" in text
    assert "  broken: In main.py, line 1: ValueError: half written" in text
    assert "  almost: " in text
    assert client_of(text) == {"sound": {"url": "http://127.0.0.1:8001/sound/me"}}


@override_settings(GUMCP_PUBLIC_URL="https://mcp.example.com/tools/", GUMCP_AUTH="keys")
def test_it_shows_the_public_address_and_how_to_make_a_key(write_server: WriteServer) -> None:
    text = next_steps("0.0.0.0", 8001, registry(write_server))
    base = "https://mcp.example.com/tools"
    for line in (f"MCP endpoint  {base}/sound", f"admin         {base}/admin/", f"health        {base}/health_check"):
        assert f"  {line}\n" in text
    assert "  listens on    http://127.0.0.1:8001\n" in text
    assert "manage.py create_key USER" in text
    assert client_of(text) == {"sound": {"url": f"{base}/sound", "headers": {"Authorization": "Bearer KEY"}}}


def test_supervisor_that_loads_no_servers_shows_the_addresses() -> None:
    text = next_steps("::1", 8001, None, workers=4)
    assert "guMCP serves with 4 workers" in text
    assert client_of(text) == {"SERVER": {"url": "http://[::1]:8001/SERVER/me"}}
