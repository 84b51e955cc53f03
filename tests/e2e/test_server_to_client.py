"""What a server says and asks on its own, to the official client of every era: the same scenarios three times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp import types
from mcp.client import Client
from mcp.client.sse import sse_client

from tests.support.host_process import HostProcess, StartHost

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(asgi_server=request.param, server_dirs="servers") as host:
        yield host


@dataclass
class User:
    """Whoever sits at the client: sees what comes and answers what is asked."""

    seen: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)

    async def on_message(self, message: Any) -> None:
        if isinstance(message, Exception):
            raise message
        self.seen.append(message)

    async def on_log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.seen.append(params)

    async def sample(self, context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        self.asked.append(params)
        return types.CreateMessageResult(role="assistant", content=types.TextContent(text="Paris"), model="m")

    async def fill_in(self, context: Any, params: Any) -> types.ElicitResult:
        self.asked.append(params)
        values = {"name": "Ada", "username": "ada", "email": "ada@example.com", "color": "green", "context": "a test"}
        wanted = params.requested_schema["properties"]
        return types.ElicitResult(action="accept", content={k: v for k, v in values.items() if k in wanted})

    async def list_roots(self, context: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri="file:///home/ada")])

    def received(self, kind: type) -> list[Any]:
        return [message for message in self.seen if isinstance(message, kind)]


ERAS = ("sse", "legacy", "auto")


@asynccontextmanager
async def connected(host: HostProcess, era: str, user: User, key: str) -> AsyncIterator[Client]:
    url = host.url("everything", key)
    async with (
        asyncio.timeout(20),
        Client(
            sse_client(url) if era == "sse" else url,
            mode="legacy" if era == "sse" else era,
            message_handler=user.on_message,
            logging_callback=user.on_log,
            sampling_callback=user.sample,
            elicitation_callback=user.fill_in,
            list_roots_callback=user.list_roots,
        ) as client,
    ):
        yield client


def text(result: Any) -> str:
    assert not result.is_error, result
    return str(result.content[0].text)


async def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; the connection's timeout bounds it."""
    while not (value := condition()):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    return value


@pytest.mark.parametrize("era", ERAS)
async def test_era_is_what_was_asked_for(host: HostProcess, era: str) -> None:
    async with connected(host, era, User(), "ada") as client:
        assert client.protocol_version == ("2026-07-28" if era == "auto" else "2025-11-25")
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("everything", "1.0.0")


@pytest.mark.parametrize("era", ERAS)
async def test_progress_reaches_its_callback(host: HostProcess, era: str) -> None:
    seen: list[tuple[float, float | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    async with connected(host, era, User(), "ada") as client:
        result = await client.call_tool("test_tool_with_progress", {}, progress_callback=note)
        assert text(result) == "Tool with progress executed"
    assert seen == [(0, 100), (50, 100), (100, 100)]


@pytest.mark.parametrize("era", ERAS)
async def test_log_messages_reach_their_callback(host: HostProcess, era: str) -> None:
    user = User()
    async with connected(host, era, user, f"log-{era}") as client:
        meta: Any = {"io.modelcontextprotocol/logLevel": "info"} if era == "auto" else None
        await client.call_tool("test_tool_with_logging", {}, meta=meta)
        logged = await eventually(lambda: user.received(types.LoggingMessageNotificationParams)[2:] and user.seen)
        told = [entry.data for entry in logged if isinstance(entry, types.LoggingMessageNotificationParams)]
        assert told == ["Tool execution started", "Tool processing data", "Tool execution completed"]


@pytest.mark.parametrize("era", ERAS)
async def test_model_user_and_roots_are_asked(host: HostProcess, era: str) -> None:
    user = User()
    async with connected(host, era, user, "ada") as client:
        result = await client.call_tool("test_sampling", {"prompt": "What is the capital of France?"})
        assert text(result) == "LLM response: Paris"
        assert user.asked.pop().messages[0].content.text == "What is the capital of France?"

        result = await client.call_tool("test_elicitation", {"message": "Who are you?"})
        assert "action=accept" in text(result)
        assert "ada@example.com" in text(result)
        assert user.asked.pop().message == "Who are you?"

        result = await client.call_tool("test_input_required_result_list_roots", {})
        assert text(result) == "Client roots: file:///home/ada"
        assert user.asked.pop() == "roots"

        result = await client.call_tool("test_input_required_result_multiple_inputs", {})
        assert text(result).splitlines() == ["Name: Ada", "Greeting: Paris", "Client roots: file:///home/ada"]


@pytest.mark.parametrize("era", ERAS)
async def test_client_is_asked_again_in_the_same_call(host: HostProcess, era: str) -> None:
    user = User()
    async with connected(host, era, user, "ada") as client:
        assert text(await client.call_tool("test_input_required_result_multi_round", {})) == "Ada likes green"
        assert len(user.asked) == 2
        prompt = await client.get_prompt("test_input_required_result_prompt", {})
        assert prompt.messages[0].content.text == "Use this context: a test"


@pytest.mark.parametrize("era", ERAS)
async def test_client_hears_that_lists_have_changed(host: HostProcess, era: str) -> None:
    user = User()
    async with connected(host, era, user, f"lists-{era}") as client:
        if era != "auto":
            for tool, kind in (
                ("test_trigger_tool_change", types.ToolListChangedNotification),
                ("test_trigger_prompt_change", types.PromptListChangedNotification),
            ):
                await client.call_tool(tool, {})
                await eventually(lambda kind=kind: user.received(kind))
        else:
            async with client.listen(tools_list_changed=True, prompts_list_changed=True) as events:
                await client.call_tool("test_trigger_tool_change", {})
                assert "Tools" in type(await anext(events)).__name__
                await client.call_tool("test_trigger_prompt_change", {})
                assert "Prompts" in type(await anext(events)).__name__
        names = [tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools]
        assert "test_extra_tool" in names


@pytest.mark.parametrize("era", ERAS)
async def test_client_hears_that_a_resource_was_updated(host: HostProcess, era: str) -> None:
    user, uri = User(), "test://watched-resource"
    async with connected(host, era, user, f"updates-{era}") as client:
        if era != "auto":
            await client.subscribe_resource(uri)
            await client.call_tool("test_trigger_resource_update", {})
            updates = await eventually(lambda: user.received(types.ResourceUpdatedNotification))
            assert str(updates[0].params.uri) == uri
            await client.unsubscribe_resource(uri)
            await client.call_tool("test_trigger_resource_update", {})
            await client.call_tool("test_trigger_tool_change", {})
            await eventually(lambda: user.received(types.ToolListChangedNotification))
            assert len(user.received(types.ResourceUpdatedNotification)) == 1
        else:
            async with client.listen(resource_subscriptions=[uri]) as events:
                await client.call_tool("test_trigger_resource_update", {})
                assert str((await anext(events)).uri) == uri
        contents = (await client.read_resource(uri, cache_mode="refresh")).contents
        assert "Version" in contents[0].text


async def test_change_in_one_era_is_heard_in_another(host: HostProcess) -> None:
    uri, user = "test://watched-resource", User()
    async with (
        connected(host, "sse", user, "shared:key") as old,
        connected(host, "legacy", User(), "shared:key") as middle,
        connected(host, "auto", User(), "shared:key") as new,
        new.listen(resource_subscriptions=[uri]) as events,
    ):
        await old.subscribe_resource(uri)
        await middle.call_tool("test_trigger_resource_update", {})
        assert str((await anext(events)).uri) == uri
        await eventually(lambda: user.received(types.ResourceUpdatedNotification))
