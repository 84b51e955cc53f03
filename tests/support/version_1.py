"""What mcp 1.28 answers to the conversations of `tests.compat`, and how an answer here is compared with it.

The environment with mcp 1.28 is made once, in `.venv-mcp1` of the project or in the folder that MCP1_ENV names.
It comes from the package index. Without one, making it fails, and so does the test that asked for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp import Client, MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import TypeAdapter

from tests.compat.conversations import CONVERSATIONS, Conversation, Step
from tests.support.environments import steps_to_make
from tests.support.processes import ROOT
from tests.support.projects import PROJECT

VERSION_1 = "1.28"
RUNNER = ROOT / "tests" / "compat" / "version_1_runner.py"

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


def version_1_python() -> Path:
    """Return a Python that has mcp 1.28; make its environment if there is none yet."""
    folder = Path(os.environ.get("MCP1_ENV") or ROOT / ".venv-mcp1")
    python = folder / "bin" / "python"
    ask = "import importlib.metadata as m; print(*[found.version for found in m.distributions(name='mcp')])"
    installed = [python, "-c", ask]
    # One process makes the environment; another one that runs tests meanwhile waits for it.
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_there = python.exists() and run(*installed, timeout=60).startswith(f"{VERSION_1}.")
        for step in () if is_there else steps_to_make(folder, f"mcp=={VERSION_1}.*"):
            run(*step, timeout=400)
    assert run(*installed, timeout=60).startswith(f"{VERSION_1}.")
    return python


def answers_of_version_1(scratch: Path) -> list[list[Any]]:
    """Return what mcp 1.28 answers to every step of every conversation; `scratch` is an empty folder."""
    conversations = [asdict(found) | {"users": sorted(found.users)} for found in CONVERSATIONS]
    task = {"project": str(PROJECT), "conversations": conversations}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    output = run(version_1_python(), RUNNER, input=json.dumps(task), timeout=100, cwd=scratch, env=environment)
    answers: list[list[Any]] = json.loads(output)
    return answers


async def perform(
    clients: Mapping[str, Client], conversation: Conversation, step: Step, received: list[Any]
) -> dict[str, Any]:
    """Return the outcome of a step, with the list that its notifications arrive in, and of the steps beside it."""
    steps = [step, *step.beside]
    by_whom = [clients[made.user_id or conversation.user_id] for made in steps]
    outcomes = [_perform_one(client, made, received) for client, made in zip(by_whom, steps, strict=True)]
    outcome, *others = await asyncio.gather(*outcomes)
    return outcome | ({"beside": others} if others else {})


async def answer_sampling(_context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    """What the client's model says; `version_1_runner` has the same."""
    asked: Any = params.messages[0].content
    content = types.TextContent(text=f"asked for {asked.text}")
    return types.CreateMessageResult(role="assistant", content=content, model="a model")


async def answer_elicitation(_context: Any, params: Any) -> types.ElicitResult:
    """What the client's user says; `version_1_runner` has the same."""
    return types.ElicitResult(action="accept", content=dict.fromkeys(params.requested_schema["required"], 7))


CLIENT_OPTIONS: dict[str, Any] = {
    "sampling_callback": answer_sampling,
    "elicitation_callback": answer_elicitation,
    "cache": None,
    "read_timeout_seconds": 20,
}


async def _perform_one(client: Client, step: Step, received: list[Any]) -> dict[str, Any]:
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
    if "beside" in outcome:
        outcome = outcome | {"beside": [visible(other, mode) for other in outcome["beside"]]}
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
    if step.beside:
        others = zip(step.beside, answer["beside"], strict=True)
        wanted["beside"] = [wanted_here(other, theirs, mode) for other, theirs in others]
    if step.here is not None:
        wanted["result"] = step.here
    elif (error := wanted.get("error")) and error["code"] == 0:
        wanted["error"] = error | {"code": INTERNAL_ERROR}  # 1
    elif (error := wanted.get("error")) and error["message"] == "Method not found":
        wanted["error"] = error | {"data": step.method}  # version 2's dispatcher adds it
    elif wanted.get("result"):
        listed = {*KNOWN_FIELDS["tools"], *(["outputSchema"] if step.lists_output_schemas else [])}
        known = KNOWN_FIELDS | {"tools": listed}
        wanted["result"] = {
            key: [with_unknown_in_meta(item, known[key]) for item in value] if key in known else value
            for key, value in wanted["result"].items()
        }
        for item in wanted["result"].get("tools", ()):
            if item["name"] in step.without_output_schema:
                del item["outputSchema"]
    return visible(wanted, mode)


def with_unknown_in_meta(item: dict[str, Any], known: set[str]) -> dict[str, Any]:  # 2, 6
    unknown = {key: value for key, value in item.items() if key not in known}
    kept = {key: value for key, value in item.items() if key in known}
    return kept | ({"_meta": unknown | item.get("_meta", {})} if unknown else {})
