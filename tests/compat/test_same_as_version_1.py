"""The same calls to the same unchanged modules give the same answers on mcp 1.28 and here, in both protocol eras.

`tests.support.version_1` runs mcp 1.28. It needs the package index once; without it these tests fail.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from types import ModuleType
from typing import Any

import pytest
from mcp import Client

from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.server import CompatServer
from tests.compat.conversations import CONVERSATIONS, Conversation, Step
from tests.support.projects import SERVERS, importable_project, load_main
from tests.support.version_1 import CLIENT_OPTIONS, perform, visible, wanted_here


@pytest.fixture
def handler_threads() -> Iterator[HandlerThreads]:
    threads = HandlerThreads("compared")
    yield threads
    threads.close(join_seconds=5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "mode"),
    [
        pytest.param(number, mode, id=f"{number}-{conversation.server}-{mode}")
        for number, conversation in enumerate(CONVERSATIONS)
        for mode in ("legacy", "2026-07-28")
        if mode == "legacy" or any(step.in_2026 for step in conversation.steps)
    ],
)
async def test_answers_equal_those_of_version_1(
    number: int, mode: str, answers_of_version_1: list[list[Any]], handler_threads: HandlerThreads
) -> None:
    conversation = CONVERSATIONS[number]
    pairs = [
        (step, answer)
        for step, answer in zip(conversation.steps, answers_of_version_1[number], strict=True)
        if mode == "legacy" or step.in_2026
    ]
    ours = await converse(conversation, mode, handler_threads, pairs)

    for (step, answer), mine in zip(pairs, ours, strict=True):
        wanted = wanted_here(step, answer, mode)
        assert mine == wanted, f"{conversation.server}: {step.method} {step.params}"


def test_every_difference_is_one(answers_of_version_1: list[list[Any]]) -> None:
    """A step that says it answers otherwise here does: what 1.28 answers is not the same by now."""
    steps = [
        (step, answer)
        for conversation, answers in zip(CONVERSATIONS, answers_of_version_1, strict=True)
        for step, answer in zip(conversation.steps, answers, strict=True)
    ]
    for step, answer in steps:
        if step.here is not None:
            assert answer["result"] != step.here, step


async def converse(
    conversation: Conversation, mode: str, threads: HandlerThreads, pairs: list[tuple[Step, Any]]
) -> list[Any]:
    received: list[Any] = []  # by the step that runs now
    arrived = asyncio.Event()

    async def remember(message: Any) -> None:
        received.append(message.model_dump(by_alias=True, mode="json", exclude_none=True))
        arrived.set()

    with importable_project() as namespace:
        module = load_main(SERVERS / conversation.server / "main.py", namespace)
        async with AsyncExitStack() as stack:
            clients: dict[str, Client] = {}
            for user_id in conversation.users:
                server = await stack.enter_async_context(running_server(module, user_id, threads))
                client = Client(server, mode=mode, message_handler=remember, **CLIENT_OPTIONS)
                clients[user_id] = await stack.enter_async_context(client)
            outcomes = []
            for step, answer in pairs:
                outcome = await perform(clients, conversation, step, received)
                async with asyncio.timeout(10):
                    while step.is_eventual and outcome["result"] != answer["result"]:
                        outcome = await perform(clients, conversation, step, received)
                    # The client handles notifications in tasks of their own, which may end after the call.
                    while len(visible(outcome, mode)["notifications"]) < len(visible(answer, mode)["notifications"]):
                        arrived.clear()
                        await arrived.wait()
                outcomes.append(visible(outcome, mode))
            return outcomes


@asynccontextmanager
async def running_server(module: ModuleType, user_id: str, threads: HandlerThreads) -> AsyncIterator[CompatServer]:
    """The server of one user, with its factory, its lifespan and its handlers on the home loop, as the host has it."""

    async def make() -> CompatServer:
        if hasattr(getattr(module, "mcp", None), "_mcp_server"):
            shared: CompatServer = module.mcp._mcp_server
            return shared
        server: CompatServer = module.server(user_id, "key")
        module.get_initialization_options(server)
        return server

    server = await threads.run(make)
    server.handler_threads = threads
    async with server.open_lifespan() as state:
        # The client enters the lifespan on its own loop.
        server.lifespan = lambda _server: nullcontext(state)
        yield server
