"""The client side of `manage.py call` and `inspect`: the SDK's client, connected in memory to one server's instance."""

import difflib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from django.core.management.base import CommandError
from mcp import types
from mcp.client import Client

from gateway.access.identity import Identity
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.factories import make
from gateway.management.answers import Respondent
from gateway.management.client_options import HANDSHAKE

_MAX_PAGES: Final = 100
"""Pages of a list that are read: a server that never stops listing must not hang the shell."""

T = TypeVar("T")


def unknown_name(server: str, kind: str, name: str, names: Sequence[str]) -> CommandError:
    """Return the error that says what there is instead of `name`."""
    close = difflib.get_close_matches(name, names, 1)
    question = f" Did you mean {close[0]}?" if close else ""
    listed = f"{kind.capitalize()}s: {', '.join(names) or 'none'}."
    return CommandError(f"{server} has no {kind} {name}.{question} {listed}")


@asynccontextmanager
async def connected(
    definition: ServerDefinition, identity: Identity, respondent: Respondent, protocol: str
) -> AsyncIterator[Client]:
    """Make an instance for the user, and connect a client to it that speaks `protocol`.

    Raises:
        BaseException: what the server's own code raised.
    """
    server, _ = await make(definition.style, identity.user_id, identity.api_key)
    client = Client(
        server,
        # "auto" asks the server about itself, and a Server object in this process speaks the newest protocol.
        mode="legacy" if protocol == HANDSHAKE else "auto",
        elicitation_callback=respondent.elicit,
        sampling_callback=respondent.sample,
        list_roots_callback=respondent.list_roots,
        logging_callback=_show_log,
        log_level="debug",
    )
    async with client:
        yield client


async def all_tools(client: Client) -> list[types.Tool]:
    """Return every tool."""
    return await _all_pages(client.server_capabilities.tools, client.list_tools, lambda page: page.tools)


async def all_resources(client: Client) -> list[types.Resource]:
    """Return every resource."""
    return await _all_pages(client.server_capabilities.resources, client.list_resources, lambda page: page.resources)


async def all_resource_templates(client: Client) -> list[types.ResourceTemplate]:
    """Return every resource template."""
    return await _all_pages(
        client.server_capabilities.resources, client.list_resource_templates, lambda page: page.resource_templates
    )


async def all_prompts(client: Client) -> list[types.Prompt]:
    """Return every prompt."""
    return await _all_pages(client.server_capabilities.prompts, client.list_prompts, lambda page: page.prompts)


async def _all_pages(
    capability: object, list_page: Callable[..., Awaitable[Any]], items: Callable[[Any], list[T]]
) -> list[T]:
    """The items of all pages; none if the server does not declare the capability."""
    if capability is None:
        return []
    found: list[T] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await list_page(cursor=cursor)
        found += items(page)
        if not (cursor := page.next_cursor):
            break
    return found


async def _show_log(params: types.LoggingMessageNotificationParams) -> None:
    """Print what the server sends to the client's log."""
    sys.stderr.write(f"{params.level}: {params.data}\n")
