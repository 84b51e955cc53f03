"""What a server says of itself, asked in memory, as JSON and as text for a terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp.client import Client
from pydantic import BaseModel

from gateway.access.identity import Identity
from gateway.catalog.definitions import ServerDefinition
from gateway.management.answers import Respondent
from gateway.management.in_memory_client import (
    all_prompts,
    all_resource_templates,
    all_resources,
    all_tools,
    connected,
    unknown_name,
)
from gateway.management.tool_arguments import parse_arguments

_WIDTH = 100


@dataclass(frozen=True)
class Report:
    """What was asked for."""

    facts: dict[str, Any]
    """As the protocol writes it."""

    def text(self) -> str:
        """Return it for a person to read."""
        if "contents" in self.facts:
            return "\n".join(_content(item) for item in self.facts["contents"])
        if "messages" in self.facts:
            return "\n".join(f"{item['role']}: {_content(item['content'])}" for item in self.facts["messages"])
        return "\n".join(_overview(self.facts))


async def inspect(
    definition: ServerDefinition,
    identity: Identity,
    *,
    protocol: str,
    resource: str | None,
    prompt: str | None,
    words: Sequence[str],
) -> Report:
    """Ask a server for a resource or a prompt, else for everything that it offers.

    Raises:
        MCPError: the server refused.
        CommandError: it has no such prompt, or the prompt's arguments cannot be read.
        BaseException: what the server's own code raised outside of a handler.
    """
    async with connected(definition, identity, Respondent([]), protocol) as client:
        if resource is not None:
            return Report(_facts(await client.read_resource(resource)))
        if prompt is not None:
            return await _get_prompt(client, definition.name, prompt, words)
        info = client.server_info
        return Report(
            {
                "name": definition.name,
                "server": {} if info is None else _facts(info),
                "protocol": client.protocol_version,
                "instructions": client.instructions or "",
                "tools": [_facts(tool) for tool in await all_tools(client)],
                "resources": [_facts(found) for found in await all_resources(client)],
                "resourceTemplates": [_facts(found) for found in await all_resource_templates(client)],
                "prompts": [_facts(found) for found in await all_prompts(client)],
            }
        )


async def _get_prompt(client: Client, server: str, name: str, words: Sequence[str]) -> Report:
    names = [found.name for found in await all_prompts(client)]
    if name not in names:
        raise unknown_name(server, "prompt", name, names)
    # A prompt's arguments are texts.
    schema = {"properties": {word.partition("=")[0]: {"type": "string"} for word in words}}
    return Report(_facts(await client.get_prompt(name, parse_arguments(words, schema))))


def _facts(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _overview(facts: Mapping[str, Any]) -> Iterator[str]:
    server = facts["server"]
    name = f"{server.get('name', '')} {server.get('version', '')}".strip()
    yield f"{facts['name']}: {name}, protocol {facts['protocol']}"
    if facts["instructions"]:
        yield _indented(facts["instructions"], 2)
    for title, kind in (("Tools", "tools"), ("Resources", "resources"), ("Resource templates", "resourceTemplates")):
        if facts[kind]:
            yield f"\n{title}"
        for item in facts[kind]:
            yield f"  {item.get('uri') or item.get('uriTemplate') or item['name']}"
            if item.get("description"):
                yield _indented(item["description"], 6)
            yield from _parameters(item.get("inputSchema", {}))
    if facts["prompts"]:
        yield "\nPrompts"
    for item in facts["prompts"]:
        yield f"  {item['name']}"
        if item.get("description"):
            yield _indented(item["description"], 6)
        for argument in item.get("arguments", []):
            yield _parameter(argument["name"], "string", bool(argument.get("required")), argument.get("description"))


def _parameters(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required") or []
    for name, declared in (schema.get("properties") or {}).items():
        declared = declared if isinstance(declared, Mapping) else {}
        yield _parameter(name, _type(declared), name in required, declared.get("description"), declared.get("default"))


def _parameter(name: str, kind: str, is_required: bool, text: str | None, default: Any = None) -> str:
    facts = f"{kind}, required" if is_required else kind if default is None else f"{kind}, default {default}"
    line = f"    {name} ({facts})"
    return f"{line}\n{_indented(text, 8)}" if text else line


def _type(declared: Mapping[str, Any]) -> str:
    if isinstance(declared.get("enum"), list):
        return " | ".join(str(choice) for choice in declared["enum"])
    options = declared.get("anyOf") or declared.get("oneOf")
    if isinstance(options, list):
        return " | ".join(_type(option) for option in options if isinstance(option, Mapping))
    named = declared.get("type", "any")
    return " | ".join(named) if isinstance(named, list) else str(named)


def _content(item: Mapping[str, Any]) -> str:
    if "text" in item:
        return str(item["text"])
    data = item.get("blob") or item.get("data")
    return f"({item.get('mimeType', 'binary')}, {len(data)} characters of base64)" if data else str(dict(item))


def _indented(text: str, columns: int) -> str:
    lines = [wrapped for line in text.strip().splitlines() for wrapped in textwrap.wrap(line, _WIDTH - columns) or [""]]
    return textwrap.indent("\n".join(lines), " " * columns)
