"""Makes calls to version 1 modules with mcp 1.x. Run by that version's Python; imports nothing of this project.

Reads `{"project": path, "conversations": […]}` from stdin and writes a list of lists of outcomes to stdout. An outcome
is `{"result": …}` or `{"error": {"code", "message", "data"}}` as it was on the wire, and the notifications received.
"""

import asyncio
import importlib.util
import json
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from mcp import types
from mcp.shared.exceptions import McpError
from mcp.shared.memory import create_connected_server_and_client_session
from pydantic import RootModel


class AnyResult(RootModel[dict]):
    pass


def load(project, name):
    path = Path(project, "src", "servers", name, "main.py")
    spec = importlib.util.spec_from_file_location("v1_server_" + name.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def perform(session, step, received):
    received.clear()
    message = {"method": step["method"], "params": step["params"]}
    try:
        if step["is_notification"]:
            await session.send_notification(types.ClientNotification.model_validate(message))
            outcome = {"result": None}
        else:
            result = await session.send_request(types.ClientRequest.model_validate(message), AnyResult)
            outcome = {"result": result.root}
    except McpError as exc:
        error = exc.error
        outcome = {"error": {"code": error.code, "message": error.message, "data": error.data}}
    return outcome | {"notifications": list(received)}


async def perform_together(sessions, conversation, step, received):
    steps = [step, *step["beside"]]
    by_whom = [sessions[made["user_id"] or conversation["user_id"]] for made in steps]
    made = zip(by_whom, steps, strict=True)
    outcome, *others = await asyncio.gather(*(perform(session, step, received) for session, step in made))
    return outcome | ({"beside": others} if others else {})


def make_server(module, user_id):
    if hasattr(getattr(module, "mcp", None), "_mcp_server"):
        return module.mcp._mcp_server
    server = module.server(user_id, "key")
    module.get_initialization_options(server)
    return server


async def answer_sampling(context, params):
    content = types.TextContent(type="text", text=f"asked for {params.messages[0].content.text}")
    return types.CreateMessageResult(role="assistant", content=content, model="a model")


async def answer_elicitation(context, params):
    return types.ElicitResult(action="accept", content=dict.fromkeys(params.requestedSchema["required"], 7))


async def converse(project, conversation):
    module = load(project, conversation["server"])
    received = []

    async def remember(message):
        if isinstance(message, types.ServerNotification):
            received.append(message.root.model_dump(by_alias=True, mode="json", exclude_none=True, exclude={"jsonrpc"}))

    async with AsyncExitStack() as stack:
        sessions = {}
        for user_id in conversation["users"]:
            server = make_server(module, user_id)
            sessions[user_id] = await stack.enter_async_context(
                create_connected_server_and_client_session(
                    server,
                    read_timeout_seconds=timedelta(seconds=20),
                    message_handler=remember,
                    sampling_callback=answer_sampling,
                    elicitation_callback=answer_elicitation,
                )
            )
        steps = conversation["steps"]
        return [await perform_together(sessions, conversation, step, received) for step in steps]


async def main():
    task = json.load(sys.stdin)
    sys.path.insert(0, task["project"])
    outcomes = [await converse(task["project"], conversation) for conversation in task["conversations"]]
    json.dump(outcomes, sys.stdout)


asyncio.run(main())
