"""The same calls to the same unchanged modules give the same answers on mcp 1.28 and here, in both protocol eras.

The environment with mcp 1.28 is made once, in `.venv-mcp1` of the project or in the folder that MCP1_ENV names.
Without a package index that fails, and so does the test: a comparison that did not happen is no comparison.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import TypeAdapter

from gateway.compat.workers import HandlerThreads
from tests.compat.conversations import CONVERSATIONS, Conversation, Step
from tests.support.projects import PROJECT, SERVERS, importable_project, load_main

VERSION_1 = "1.28"
ROOT = Path(__file__).parent.parent.parent

REQUESTS = {
    "tools/list": types.ListToolsRequest,
    "tools/call": types.CallToolRequest,
    "resources/list": types.ListResourcesRequest,
    "resources/templates/list": types.ListResourceTemplatesRequest,
    "resources/read": types.ReadResourceRequest,
    "resources/subscribe": types.SubscribeRequest,
    "resources/unsubscribe": types.UnsubscribeRequest,
    "prompts/list": types.ListPromptsRequest,
    "prompts/get": types.GetPromptRequest,
    "completion/complete": types.CompleteRequest,
    "logging/setLevel": types.SetLevelRequest,
    "ping": types.PingRequest,
}
KNOWN_FIELDS = {
    "tools": {"name", "title", "description", "inputSchema", "annotations", "icons", "execution", "_meta"},
    "resources": {"name", "title", "uri", "description", "mimeType", "size", "icons", "annotations", "_meta"},
}
ADDED_IN_2026 = {"resultType", "ttlMs", "cacheScope"}

AnyResult = TypeAdapter(dict[str, Any])


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def version_1_python() -> Path:
    """A Python that has mcp 1.28, made where there is none yet."""
    folder = Path(os.environ.get("MCP1_ENV") or ROOT / ".venv-mcp1")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        run(sys.executable, "-m", "venv", folder, timeout=120)
    installed = [python, "-c", "import importlib.metadata as m; print(m.version('mcp'))"]
    found = subprocess.run(installed, capture_output=True, text=True, check=False, timeout=60).stdout
    if not found.startswith(f"{VERSION_1}."):
        run(python, "-m", "pip", "install", "--quiet", f"mcp=={VERSION_1}.*", timeout=400)
    assert run(*installed, timeout=60).startswith(f"{VERSION_1}.")
    return python


@pytest.fixture(scope="session")
def answers_of_version_1(version_1_python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What mcp 1.28 answered to every step of every conversation."""
    task = {"project": str(PROJECT), "conversations": [asdict(conversation) for conversation in CONVERSATIONS]}
    runner = Path(__file__).parent / "version_1_runner.py"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    output = run(
        version_1_python,
        runner,
        input=json.dumps(task),
        timeout=100,
        cwd=tmp_path_factory.mktemp("version-1"),
        env=environment,
    )
    answers: list[list[Any]] = json.loads(output)
    return answers


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
        server = module.server(conversation.user_id, "key")
        module.get_initialization_options(server)
        server.handler_threads = threads
        async with Client(server, mode=mode, message_handler=remember, cache=None, read_timeout_seconds=20) as client:
            outcomes = []
            for step, answer in pairs:
                outcome = await perform(client, step, received)
                async with asyncio.timeout(10):
                    while step.is_eventual and outcome["result"] != answer["result"]:
                        outcome = await perform(client, step, received)
                    # The client handles notifications in tasks of their own, which may end after the call.
                    while len(visible(outcome, mode)["notifications"]) < len(visible(answer, mode)["notifications"]):
                        arrived.clear()
                        await arrived.wait()
                outcomes.append(visible(outcome, mode))
            return outcomes


async def perform(client: Client, step: Step, received: list[Any]) -> dict[str, Any]:
    """Return the outcome of a step, with the list that its notifications arrive in."""
    received.clear()
    message = {"method": step.method, "params": step.params}
    outcome: dict[str, Any]
    try:
        if step.is_notification:
            await client.session.send_notification(types.ProgressNotification.model_validate(message))
            outcome = {"result": None}
        else:
            request = REQUESTS[step.method].model_validate(message)
            outcome = {"result": await client.session.send_request(request, AnyResult)}
    except MCPError as exc:
        outcome = {"error": {"code": exc.code, "message": exc.message, "data": exc.data}}
    return outcome | {"notifications": received}


def visible(outcome: dict[str, Any], mode: str) -> dict[str, Any]:
    """Drop what 2026-07-28 adds to every result, and the notifications that it has no stream for."""
    result = outcome.get("result")
    if isinstance(result, dict):
        result = {key: value for key, value in result.items() if key not in ADDED_IN_2026}
        meta = {k: v for k, v in result.pop("_meta", {}).items() if not k.startswith("io.modelcontextprotocol/")}
        outcome = outcome | {"result": result | ({"_meta": meta} if meta else {})}
    if mode != "legacy":
        kept = [n for n in outcome["notifications"] if n["method"] == "notifications/progress"]
        return outcome | {"notifications": kept}
    return outcome | {"notifications": list(outcome["notifications"])}


def wanted_here(step: Step, answer: dict[str, Any], mode: str) -> dict[str, Any]:
    """Apply the differences that are on purpose to an answer of 1.28."""
    wanted = dict(answer)
    if step.here is not None:
        wanted["result"] = step.here
    elif (error := wanted.get("error")) and error["code"] == 0:
        wanted["error"] = error | {"code": INTERNAL_ERROR}  # 1
    elif (error := wanted.get("error")) and error["message"] == "Method not found":
        wanted["error"] = error | {"data": step.method}  # version 2's dispatcher adds it
    elif wanted.get("result"):
        wanted["result"] = {
            key: [with_unknown_in_meta(item, KNOWN_FIELDS[key]) for item in value] if key in KNOWN_FIELDS else value
            for key, value in wanted["result"].items()
        }
    return visible(wanted, mode)


def with_unknown_in_meta(item: dict[str, Any], known: set[str]) -> dict[str, Any]:  # 2, 6
    unknown = {key: value for key, value in item.items() if key not in known}
    kept = {key: value for key, value in item.items() if key in known}
    return kept | ({"_meta": unknown | item.get("_meta", {})} if unknown else {})
