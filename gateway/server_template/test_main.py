"""Tests of server_template: run `python -m pytest` with this folder's path."""

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mcp import types
from mcp.client import Client
from mcp.server import Server

both_eras = pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
"""Clients that begin with a handshake, and those that do not."""


@pytest.fixture
def main() -> ModuleType:
    """Load the server's module by its path, as the host does. The folder need not be a package."""
    path = Path(__file__).with_name("main.py")
    spec = importlib.util.spec_from_file_location("main", path, submodule_search_locations=[str(path.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(instance: Server[Any], tool: str, arguments: dict[str, Any], mode: str = "auto") -> types.CallToolResult:
    async def call_connected() -> types.CallToolResult:
        async with Client(instance, mode=mode) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(call_connected())


def text(result: types.CallToolResult) -> str:
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


@both_eras
def test_greet_greets_by_name(main: ModuleType, mode: str) -> None:
    result = call(main.server("alice"), "greet", {"name": "Ada"}, mode)
    assert not result.is_error
    assert text(result) == "Hello, Ada! This is greeting number 1 for alice."


def test_every_user_has_a_count_of_their_own(main: ModuleType) -> None:
    alice, bob = main.server("alice"), main.server("bob")
    call(alice, "greet", {"name": "Ada"})
    assert "number 2 for alice" in text(call(alice, "greet", {"name": "Ada"}))
    assert "number 1 for bob" in text(call(bob, "greet", {"name": "Ada"}))


@both_eras
def test_greet_without_a_name_is_an_error_that_says_so(main: ModuleType, mode: str) -> None:
    result = call(main.server("alice"), "greet", {}, mode)
    assert result.is_error
    assert "name" in text(result)


def test_options_name_the_server_and_its_version(main: ModuleType) -> None:
    options = main.get_initialization_options(main.server("alice"))
    assert options.server_name == "server_template"
    assert options.server_version
