"""everything: the reference server. It has one example of everything that a server can offer, for every protocol era.

The names, texts and schemas are those that the MCP conformance tool (`@modelcontextprotocol/conformance`, version
0.2.0-alpha.12) asks for; `tests/conformance/run.py` runs it.

What to look at if your server has old and new clients:

* `Call.ask` asks the client for something in the middle of a tool. docs/asking-clients.md has a shorter helper. Up to
  2025-11-25 this is a request to the client over the open connection. From 2026-07-28 on the tool ends with an
  `InputRequiredResult`, and runs again from its start when the client has the answers. A tool awaits `ask` and need not
  know which of the two happens, if everything before the `await` may happen twice.
* `State.announce` tells clients that something changed: on the streams of `subscriptions/listen`, and by notification
  to connections of the handshake era.
* `requestState` travels through the client. This server gives it to the SDK unsealed. The host puts the SDK's
  `RequestStateBoundary` in front of every instance, which seals it. A program that serves this module by itself adds
  one to `server.middleware`.

Spec: 2025-11-25 and 2026-07-28, server features.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, get_args
from urllib.parse import unquote

import anyio
from mcp import types
from mcp.server import NotificationOptions, Server, ServerRequestContext
from mcp.server.caching import CacheHint
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.types.jsonrpc import INVALID_PARAMS, MISSING_REQUIRED_CLIENT_CAPABILITY
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

Context = ServerRequestContext[dict[str, Any], Any]
Content = list[types.ContentBlock]

STEP_SECONDS: Final = 0.05
"""Pause between two notifications of one call, so that a client sees them arrive one by one (conformance tool)."""

RECONNECT_SECONDS: Final = 0.1
"""How long `test_reconnection` works on after it closed its stream: the client must come back for the result."""

NOTIFY_SECONDS: Final = 1.0
"""How long one subscriber may hold up an announcement: a client that does not read gets no more than that."""

SUBSCRIPTIONS_MAX: Final = 100
"""Handshake-era subscriptions kept by one instance. The SDK does not tell a handler when a connection is gone, so the
oldest make room."""

LOG_LEVELS: Final[tuple[types.LoggingLevel, ...]] = get_args(types.LoggingLevel)
"""Least severe first."""

RESOURCE_NOT_FOUND_UNTIL_2025: Final = -32002
"""Spec 2025-11-25 server/resources#error-handling; 2026-07-28 retires it for INVALID_PARAMS (SEP-2164)."""

PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""One red pixel."""

WAV: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="
"""Two samples of silence, 8 kHz, 8 bit, mono."""


# --- State ---


@dataclass
class State:
    """What belongs to one instance, that is to one user. The user's connections of every era share it."""

    extra_tool_offered: bool = False
    extra_prompt_offered: bool = False
    watched_version: int = 1
    log_level: types.LoggingLevel = "debug"
    """Set by `logging/setLevel` of the handshake era, for the whole instance: nothing tells a handler when a connection
    is gone, and its level with it."""
    bus: InMemorySubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    subscriptions: list[tuple[str, ServerSession]] = field(default_factory=list)
    """URI and connection of each `resources/subscribe` of the handshake era, oldest first."""

    def subscribe(self, uri: str, session: ServerSession) -> None:
        self.unsubscribe(uri, session)
        self.subscriptions.append((uri, session))
        del self.subscriptions[:-SUBSCRIPTIONS_MAX]

    def unsubscribe(self, uri: str, session: ServerSession) -> None:
        # Each request has its own session object, but a connection's requests share the client's initialize parameters.
        connection = session.client_params
        self.subscriptions = [
            (subscribed_uri, subscriber)
            for subscribed_uri, subscriber in self.subscriptions
            if subscribed_uri != uri or subscriber.client_params is not connection
        ]

    async def announce(self, event: ServerEvent, ctx: Context) -> None:
        """Tell clients that something changed, each in the way of its era.

        A 2026-07-28 client hears of it if it listens (`subscriptions/listen`). A handshake-era one gets a notification:
        of a resource if it subscribed to it, of a changed list if it is the one that caused the change. The SDK drops
        what a connection's era does not know, so no era is asked for here.
        """
        await self.bus.publish(event)
        match event:
            case ToolsListChanged():
                await ctx.session.send_tool_list_changed()
            case PromptsListChanged():
                await ctx.session.send_prompt_list_changed()
            case ResourceUpdated(uri=uri):
                async with anyio.create_task_group() as subscribers:
                    for subscribed_uri, session in self.subscriptions:
                        if subscribed_uri == uri:
                            subscribers.start_soon(self._send_updated, session, uri)
            case _:
                await ctx.session.send_resource_list_changed()

    async def _send_updated(self, session: ServerSession, uri: str) -> None:
        with anyio.move_on_after(NOTIFY_SECONDS):
            await session.send_resource_updated(uri)


# --- Asking the client ---


class ToolFailure(Exception):
    """The call cannot be carried out. The message is for the model, and is sent as a result with `isError`."""


class InputNeeded(Exception):
    """Ends this round of a call: the client has to answer `result.input_requests` first."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__("input required")
        self.result = result


@dataclass(frozen=True)
class Call:
    """One `tools/call` or `prompts/get` in progress: its parameters, and the ways back to the client."""

    instance: State
    ctx: Context
    params: types.CallToolRequestParams | types.GetPromptRequestParams

    @property
    def is_handshake_era(self) -> bool:
        return self.ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS

    @property
    def state(self) -> str | None:
        """What an earlier round of this call passed to `ask`. `None` in the first round, and in the handshake era."""
        return self.params.request_state

    def text(self, name: str) -> str:
        """Return a required text argument. The SDK does not check arguments against a tool's schema."""
        value = (self.params.arguments or {}).get(name)
        if not isinstance(value, str):
            raise ToolFailure(f"Argument '{name}' is required and must be a string")
        return value

    async def log(self, level: types.LoggingLevel, text: str) -> None:
        """Send a log message along with this call's response, if the client wants messages of this level.

        The SDK's own `send_log_message` is deprecated, as logging is from 2026-07-28 on, and knows no set level.
        """
        if self.is_handshake_era:
            wanted: Any = self.instance.log_level
        else:
            # Spec 2026-07-28 server/utilities/logging: no messages for a request that did not ask for them.
            wanted = (self.ctx.meta or {}).get(types.LOG_LEVEL_META_KEY)
        if wanted not in LOG_LEVELS or LOG_LEVELS.index(level) < LOG_LEVELS.index(wanted):
            return
        params = types.LoggingMessageNotificationParams(level=level, data=text, logger="everything")
        await self.ctx.session.send_notification(
            types.LoggingMessageNotification(params=params), related_request_id=self.ctx.request_id
        )

    def client_can(self, request: types.InputRequest) -> bool:
        return self.ctx.session.check_client_capability(capability_for(request))

    async def ask(self, requests: types.InputRequests, state: str | None = None) -> types.InputResponses:
        """Have the client answer `requests` and return its answers under the same keys.

        `state` is what a later round of this call needs to know; answers that come back with another state, or none,
        belong to another question and are asked for again.

        Raises:
            InputNeeded: 2026-07-28: the answers are not there yet. Not for a tool to catch.
            MCPError: The client did not declare the capability to answer, or refuses to.
        """
        for request in requests.values():
            self.require(capability_for(request))
        if self.is_handshake_era:
            return {key: await self._send(request) for key, request in requests.items()}
        answers = self.params.input_responses or {}
        if self.state == state and all(is_answer(request, answers.get(key)) for key, request in requests.items()):
            return {key: answers[key] for key in requests}
        raise InputNeeded(types.InputRequiredResult(input_requests=requests, request_state=state))

    def require(self, capability: types.ClientCapabilities) -> None:
        """Spec 2026-07-28: no server relies on a capability that the request did not declare."""
        if not self.ctx.session.check_client_capability(capability):
            missing = types.MissingRequiredClientCapabilityErrorData(required_capabilities=capability)
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                "The client did not declare a capability that this call needs",
                missing.model_dump(by_alias=True, mode="json", exclude_none=True),
            )

    async def _send(self, request: types.InputRequest) -> types.InputResponse:
        # Naming the call makes the request travel on the call's own stream, where a client without a standalone
        # stream sees it too.
        on_this_call = ServerMessageMetadata(related_request_id=self.ctx.request_id)
        send = partial(self.ctx.session.send_request, request, metadata=on_this_call)
        match request:
            case types.ElicitRequest():
                return await send(result_type=types.ElicitResult)
            case types.CreateMessageRequest():
                return await send(result_type=types.CreateMessageResult)
            case types.ListRootsRequest():
                return await send(result_type=types.ListRootsResult)


def capability_for(request: types.InputRequest) -> types.ClientCapabilities:
    match request:
        case types.ElicitRequest():
            return types.ClientCapabilities(elicitation=types.ElicitationCapability())
        case types.CreateMessageRequest():
            return types.ClientCapabilities(sampling=types.SamplingCapability())
        case types.ListRootsRequest():
            return types.ClientCapabilities(roots=types.RootsCapability())


def is_answer(request: types.InputRequest, answer: types.InputResponse | None) -> bool:
    """Whether `answer` is of the kind that `request` calls for, and an accepted form has its required fields."""
    match request, answer:
        case types.ElicitRequest(params=types.ElicitRequestFormParams() as form), types.ElicitResult(action="accept"):
            return set(form.requested_schema.get("required", ())) <= set(answer.content or {})
        case types.ElicitRequest(), types.ElicitResult():
            return True
        case types.CreateMessageRequest(), types.CreateMessageResult() | types.CreateMessageResultWithTools():
            return True
        case types.ListRootsRequest(), types.ListRootsResult():
            return True
        case _:
            return False


def form(message: str, properties: dict[str, Any], required: list[str] | None = None) -> types.ElicitRequest:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def prompt(text: str, max_tokens: int = 100) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=text))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


def roots() -> types.ListRootsRequest:
    return types.ListRootsRequest()


NAME_FORM: Final = form("What is your name?", {"name": {"type": "string"}}, ["name"])
CONFIRM_FORM: Final = form("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])


def filled_in(answer: types.InputResponse, name: str) -> str:
    """Return what the user filled in for `name`, or what the user did with the form instead."""
    if not isinstance(answer, types.ElicitResult) or answer.action != "accept":
        return f"({getattr(answer, 'action', 'no answer')})"
    return str((answer.content or {}).get(name))


def sampled(answer: types.InputResponse) -> str:
    """Return the text of what the client's model said."""
    blocks = getattr(answer, "content", [])
    return " ".join(
        block.text
        for block in (blocks if isinstance(blocks, list) else [blocks])
        if isinstance(block, types.TextContent)
    )


def listed(answer: types.InputResponse) -> str:
    return ", ".join(str(root.uri) for root in answer.roots) if isinstance(answer, types.ListRootsResult) else ""


# --- Content ---


def text(*lines: str) -> Content:
    return [types.TextContent(text="\n".join(lines))]


def embedded(uri: str, mime_type: str, content: str) -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=mime_type, text=content))


# --- Tools: what comes back ---


async def simple_text(call: Call) -> Content:
    return text("This is a simple text response for testing.")


async def image_content(call: Call) -> Content:
    return [types.ImageContent(data=PNG, mime_type="image/png")]


async def audio_content(call: Call) -> Content:
    return [types.AudioContent(data=WAV, mime_type="audio/wav")]


async def embedded_resource(call: Call) -> Content:
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


async def multiple_content_types(call: Call) -> Content:
    return [
        types.TextContent(text="Multiple content types test:"),
        types.ImageContent(data=PNG, mime_type="image/png"),
        embedded("test://mixed-content-resource", "application/json", json.dumps({"test": "data", "value": 123})),
    ]


async def error_handling(call: Call) -> Content:
    raise ToolFailure("This tool intentionally returns an error for testing")


async def echo_arguments(call: Call) -> Content:
    return text(json.dumps(call.params.arguments or {}, sort_keys=True))


# --- Tools: what happens during a call ---


async def tool_with_logging(call: Call) -> Content:
    await call.log("info", "Tool execution started")
    await anyio.sleep(STEP_SECONDS)
    await call.log("info", "Tool processing data")
    await anyio.sleep(STEP_SECONDS)
    await call.log("info", "Tool execution completed")
    return text("Tool with logging executed")


async def tool_with_progress(call: Call) -> Content:
    """Report progress; the SDK sends nothing unless the caller passed a progress token."""
    await call.ctx.session.report_progress(0, 100)
    await anyio.sleep(STEP_SECONDS)
    await call.ctx.session.report_progress(50, 100)
    await anyio.sleep(STEP_SECONDS)
    await call.ctx.session.report_progress(100, 100)
    return text("Tool with progress executed")


async def reconnection(call: Call) -> Content:
    """Close the call's own stream half-way. The result waits in the transport's event store.

    Where no stream can be closed (no event store, HTTP+SSE, stdio, 2026-07-28) the call goes on like any other.
    """
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
    await anyio.sleep(RECONNECT_SECONDS)
    return text("Reconnection test completed")


# --- Tools: asking the client ---


async def sampling(call: Call) -> Content:
    answers = await call.ask({"response": prompt(call.text("prompt"))})
    return text(f"LLM response: {sampled(answers['response'])}")


async def elicitation(call: Call) -> Content:
    properties = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    answers = await call.ask({"response": form(call.text("message"), properties, ["username", "email"])})
    return text(f"User response: {form_outcome(answers['response'])}")


async def elicitation_defaults(call: Call) -> Content:
    properties = {
        "name": {"type": "string", "description": "User name", "default": "John Doe"},
        "age": {"type": "integer", "description": "User age", "default": 30},
        "score": {"type": "number", "description": "User score", "default": 95.5},
        "status": {
            "type": "string",
            "description": "User status",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "description": "Verification status", "default": True},
    }
    answers = await call.ask({"response": form("Please review the form with its defaults", properties)})
    return text(f"Elicitation completed: {form_outcome(answers['response'])}")


async def elicitation_enums(call: Call) -> Content:
    titled = [{"const": f"value{n}", "title": f"{nth} Option"} for n, nth in enumerate(("First", "Second"), 1)]
    choices = [{"const": f"value{n}", "title": f"{nth} Choice"} for n, nth in enumerate(("First", "Second"), 1)]
    options = ["option1", "option2", "option3"]
    properties = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": choices}},
    }
    answers = await call.ask({"response": form("Please choose", properties)})
    return text(f"Elicitation completed: {form_outcome(answers['response'])}")


def form_outcome(answer: types.InputResponse) -> str:
    if not isinstance(answer, types.ElicitResult):
        return "action=none"
    return f"action={answer.action}, content={json.dumps(answer.content or {}, sort_keys=True)}"


async def missing_capability(call: Call) -> Content:
    call.require(types.ClientCapabilities(sampling=types.SamplingCapability()))
    return text("The client declared sampling")


async def ask_name(call: Call) -> Content:
    answers = await call.ask({"user_name": NAME_FORM})
    return text(f"Hello, {filled_in(answers['user_name'], 'name')}!")


async def ask_model(call: Call) -> Content:
    answers = await call.ask({"capital_question": prompt("What is the capital of France?")})
    return text(sampled(answers["capital_question"]))


async def ask_roots(call: Call) -> Content:
    answers = await call.ask({"client_roots": roots()})
    return text(f"Client roots: {listed(answers['client_roots'])}")


async def ask_with_state(call: Call) -> Content:
    answers = await call.ask({"confirm": CONFIRM_FORM}, state="waiting for the confirmation")
    return text(f"state-ok, confirmed: {filled_in(answers['confirm'], 'ok')}")


async def ask_several(call: Call) -> Content:
    answers = await call.ask(
        {"user_name": NAME_FORM, "greeting": prompt("Generate a greeting", 50), "client_roots": roots()},
        state="waiting for three answers",
    )
    return text(
        f"Name: {filled_in(answers['user_name'], 'name')}",
        f"Greeting: {sampled(answers['greeting'])}",
        f"Client roots: {listed(answers['client_roots'])}",
    )


async def ask_twice(call: Call) -> Content:
    """Ask twice. The first answer is in the state when the second one comes."""
    known = json.loads(call.state) if call.state else {}
    if "name" not in known:
        step1 = form("Step 1: What is your name?", {"name": {"type": "string"}}, ["name"])
        answers = await call.ask({"step1": step1}, state=json.dumps({"step": 1}))
        known = {"step": 2, "name": filled_in(answers["step1"], "name")}
    step2 = form("Step 2: What is your favorite color?", {"color": {"type": "string"}}, ["color"])
    answers = await call.ask({"step2": step2}, state=json.dumps(known))
    return text(f"{known['name']} likes {filled_in(answers['step2'], 'color')}")


async def ask_what_client_can(call: Call) -> Content:
    possible: types.InputRequests = {
        "user_name": NAME_FORM,
        "greeting": prompt("Generate a greeting", 50),
        "client_roots": roots(),
    }
    requests = {key: request for key, request in possible.items() if call.client_can(request)}
    if not requests:
        return text("The client declared nothing that it could be asked for")
    answers = await call.ask(requests)
    return text(f"The client answered: {', '.join(sorted(answers))}")


async def streaming_elicitation(call: Call) -> Content:
    """Notify first and ask then. The question ends the stream as its result; it is not a request on it (2026-07-28)."""
    await call.ctx.session.report_progress(1, 2, "About to ask")
    return await ask_name(call)


# --- Tools: changing what the server offers ---


async def trigger_tool_change(call: Call) -> Content:
    instance = call.instance
    instance.extra_tool_offered = not instance.extra_tool_offered
    await instance.announce(ToolsListChanged(), call.ctx)
    return text(f"test_extra_tool is {'now' if instance.extra_tool_offered else 'no longer'} offered")


async def trigger_prompt_change(call: Call) -> Content:
    instance = call.instance
    instance.extra_prompt_offered = not instance.extra_prompt_offered
    await instance.announce(PromptsListChanged(), call.ctx)
    return text(f"test_extra_prompt is {'now' if instance.extra_prompt_offered else 'no longer'} offered")


async def trigger_resource_update(call: Call) -> Content:
    instance = call.instance
    instance.watched_version += 1
    await instance.announce(ResourceUpdated(WATCHED_RESOURCE), call.ctx)
    return text(f"{WATCHED_RESOURCE} is at version {instance.watched_version}")


# --- Tools: the list ---


@dataclass(frozen=True)
class Offer:
    """A tool: how it is listed, and what runs when it is called."""

    name: str
    description: str
    run: Callable[[Call], Awaitable[Content]]
    input_schema: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    @property
    def tool(self) -> types.Tool:
        return types.Tool(name=self.name, description=self.description, input_schema=self.input_schema)


def one_text(name: str, description: str, **keywords: str) -> dict[str, Any]:
    """Input schema with one required text argument."""
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": description, **keywords}},
        "required": [name],
    }


JSON_SCHEMA_2020_12: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

OFFERS: Final = (
    Offer("test_simple_text", "Answer with a text", simple_text),
    Offer("test_image_content", "Answer with an image", image_content),
    Offer("test_audio_content", "Answer with a sound", audio_content),
    Offer("test_embedded_resource", "Answer with an embedded resource", embedded_resource),
    Offer("test_multiple_content_types", "Answer with text, image and resource", multiple_content_types),
    Offer("test_error_handling", "Fail", error_handling),
    Offer("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features", echo_arguments, JSON_SCHEMA_2020_12),
    Offer(
        "test_x_mcp_header",
        "Take an argument that the client repeats in the header Mcp-Param-Region",
        echo_arguments,
        one_text("region", "Any region", **{"x-mcp-header": "Region"}),
    ),
    Offer("test_tool_with_logging", "Send three log messages", tool_with_logging),
    Offer("test_logging_tool", "Send log messages, if the request asks for them", tool_with_logging),
    Offer("test_tool_with_progress", "Report progress three times", tool_with_progress),
    Offer("test_reconnection", "Close the call's stream before the result is there", reconnection),
    Offer("test_sampling", "Ask the client's model", sampling, one_text("prompt", "What to ask the model")),
    Offer("test_elicitation", "Ask the user", elicitation, one_text("message", "What to show to the user")),
    Offer("test_elicitation_sep1034_defaults", "Show a form with defaults", elicitation_defaults),
    Offer("test_elicitation_sep1330_enums", "Show a form with all kinds of choices", elicitation_enums),
    Offer("test_streaming_elicitation", "Report progress, then ask the user", streaming_elicitation),
    Offer("test_missing_capability", "Need sampling, without using it", missing_capability),
    Offer("test_input_required_result_elicitation", "Ask for a name", ask_name),
    Offer("test_input_required_result_sampling", "Ask the client's model a question", ask_model),
    Offer("test_input_required_result_list_roots", "Ask for the client's roots", ask_roots),
    Offer("test_input_required_result_request_state", "Ask, and know the question again", ask_with_state),
    Offer("test_input_required_result_multiple_inputs", "Ask for three things at once", ask_several),
    Offer("test_input_required_result_multi_round", "Ask twice", ask_twice),
    Offer("test_input_required_result_tampered_state", "Ask, and refuse an altered state", ask_with_state),
    Offer("test_input_required_result_capabilities", "Ask for what the client can answer", ask_what_client_can),
    Offer("test_trigger_tool_change", "Add a tool to the list, or take it away again", trigger_tool_change),
    Offer("test_trigger_prompt_change", "Add a prompt to the list, or take it away again", trigger_prompt_change),
    # Not in the conformance tool's list. Without it no resource would ever be updated.
    Offer("test_trigger_resource_update", "Change test://watched-resource", trigger_resource_update),
)

EXTRA_TOOL: Final = Offer("test_extra_tool", "Come and go with test_trigger_tool_change", simple_text)


# --- Resources ---

WATCHED_RESOURCE: Final = "test://watched-resource"

RESOURCES: Final = [
    types.Resource(uri="test://static-text", name="Static text", description="A fixed text", mime_type="text/plain"),
    types.Resource(
        uri="test://static-binary", name="Static binary", description="A fixed image", mime_type="image/png"
    ),
    types.Resource(
        uri=WATCHED_RESOURCE,
        name="Watched resource",
        description="A text that test_trigger_resource_update changes",
        mime_type="text/plain",
    ),
]

RESOURCE_TEMPLATES: Final = [
    types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="Template",
        description="Data for an id",
        mime_type="application/json",
    )
]

TEMPLATE_URI: Final = re.compile(r"test://template/([^/]+)/data")


# --- Prompts ---


def user(content: types.ContentBlock) -> types.PromptMessage:
    return types.PromptMessage(role="user", content=content)


def argument(name: str, description: str) -> types.PromptArgument:
    return types.PromptArgument(name=name, description=description, required=True)


async def simple_prompt(call: Call) -> list[types.PromptMessage]:
    return [user(types.TextContent(text="This is a simple prompt for testing."))]


async def prompt_with_arguments(call: Call) -> list[types.PromptMessage]:
    told = f"Prompt with arguments: arg1='{call.text('arg1')}', arg2='{call.text('arg2')}'"
    return [user(types.TextContent(text=told))]


async def prompt_with_embedded_resource(call: Call) -> list[types.PromptMessage]:
    return [
        user(embedded(call.text("resourceUri"), "text/plain", "Embedded resource content for testing.")),
        user(types.TextContent(text="Please process the embedded resource above.")),
    ]


async def prompt_with_image(call: Call) -> list[types.PromptMessage]:
    return [
        user(types.ImageContent(data=PNG, mime_type="image/png")),
        user(types.TextContent(text="Please analyze the image above.")),
    ]


async def prompt_that_asks(call: Call) -> list[types.PromptMessage]:
    context = form("What context should the prompt use?", {"context": {"type": "string"}}, ["context"])
    answers = await call.ask({"user_context": context})
    return [user(types.TextContent(text=f"Use this context: {filled_in(answers['user_context'], 'context')}"))]


@dataclass(frozen=True)
class PromptOffer:
    """A prompt: how it is listed, and what writes its messages."""

    name: str
    description: str
    write: Callable[[Call], Awaitable[list[types.PromptMessage]]]
    arguments: tuple[types.PromptArgument, ...] = ()

    @property
    def prompt(self) -> types.Prompt:
        return types.Prompt(name=self.name, description=self.description, arguments=list(self.arguments))


PROMPT_OFFERS: Final = (
    PromptOffer("test_simple_prompt", "A prompt without arguments", simple_prompt),
    PromptOffer(
        "test_prompt_with_arguments",
        "A prompt with two arguments",
        prompt_with_arguments,
        (argument("arg1", "First test argument"), argument("arg2", "Second test argument")),
    ),
    PromptOffer(
        "test_prompt_with_embedded_resource",
        "A prompt with an embedded resource",
        prompt_with_embedded_resource,
        (argument("resourceUri", "URI of the resource to embed"),),
    ),
    PromptOffer("test_prompt_with_image", "A prompt with an image", prompt_with_image),
    PromptOffer("test_input_required_result_prompt", "A prompt that asks the user first", prompt_that_asks),
)

EXTRA_PROMPT: Final = PromptOffer("test_extra_prompt", "Comes and goes with test_trigger_prompt_change", simple_prompt)

COMPLETIONS: Final = {"arg1": ("paris", "park", "party"), "id": ("1", "12", "123")}
"""What to suggest for an argument of a prompt or a resource template."""


# --- The server ---


@dataclass(frozen=True)
class Everything:
    """The request handlers of one instance."""

    state: State

    # Tools

    @property
    def offers(self) -> tuple[Offer, ...]:
        return (*OFFERS, EXTRA_TOOL) if self.state.extra_tool_offered else OFFERS

    def input_schema(self, tool: str) -> dict[str, Any] | None:
        """Let the SDK check `Mcp-Param-*` headers without listing all tools for each call."""
        return next((offer.input_schema for offer in self.offers if offer.name == tool), None)

    async def list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[offer.tool for offer in self.offers])

    async def call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        offer = next((offer for offer in self.offers if offer.name == params.name), None)
        if offer is None:
            # Spec server/tools#error-handling: an unknown tool is a protocol error; a tool's own errors are results.
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}")
        try:
            return types.CallToolResult(content=await offer.run(Call(self.state, ctx, params)))
        except InputNeeded as needed:
            return needed.result
        except ToolFailure as failure:
            return types.CallToolResult(content=text(str(failure)), is_error=True)

    # Resources

    async def list_resources(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=RESOURCES)

    async def list_resource_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=RESOURCE_TEMPLATES)

    async def read_resource(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        uri = params.uri
        contents: types.TextResourceContents | types.BlobResourceContents
        if uri == "test://static-text":
            static = "This is the content of the static text resource."
            contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=static)
        elif uri == "test://static-binary":
            contents = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
        elif uri == WATCHED_RESOURCE:
            watched = f"Version {self.state.watched_version} of the watched resource."
            contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=watched)
        elif found := TEMPLATE_URI.fullmatch(uri):
            identifier = unquote(found[1])
            data = {"id": identifier, "templateTest": True, "data": f"Data for ID: {identifier}"}
            contents = types.TextResourceContents(uri=uri, mime_type="application/json", text=json.dumps(data))
        else:
            is_modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
            code = INVALID_PARAMS if is_modern else RESOURCE_NOT_FOUND_UNTIL_2025
            raise MCPError(code, "Resource not found", {"uri": uri})
        return types.ReadResourceResult(contents=[contents])

    async def subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        self.state.subscribe(params.uri, ctx.session)
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self.state.unsubscribe(params.uri, ctx.session)
        return types.EmptyResult()

    # Prompts, completion, logging

    @property
    def prompt_offers(self) -> tuple[PromptOffer, ...]:
        return (*PROMPT_OFFERS, EXTRA_PROMPT) if self.state.extra_prompt_offered else PROMPT_OFFERS

    async def list_prompts(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[offer.prompt for offer in self.prompt_offers])

    async def get_prompt(
        self, ctx: Context, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult | types.InputRequiredResult:
        offer = next((offer for offer in self.prompt_offers if offer.name == params.name), None)
        if offer is None:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {params.name}")
        try:
            messages = await offer.write(Call(self.state, ctx, params))
        except InputNeeded as needed:
            return needed.result
        except ToolFailure as failure:
            # The result of a prompt cannot say that it failed.
            raise MCPError(INVALID_PARAMS, str(failure)) from None
        return types.GetPromptResult(description=offer.description, messages=messages)

    async def complete(self, ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        known = COMPLETIONS.get(params.argument.name, ())
        values = [value for value in known if value.startswith(params.argument.value)]
        return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))

    async def set_level(self, ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
        self.state.log_level = params.level
        return types.EmptyResult()


def server(user_id: str, api_key: str | None = None) -> Server[dict[str, Any]]:
    """Make an instance. Every user is offered the same; only the state belongs to one user."""
    everything = Everything(State())
    instance = Server(
        "everything",
        version="1.0.0",
        title="Everything",
        instructions="Reference server: one example of each MCP feature. Its tools are for testing clients.",
        # The lists and the resources change at any time. A client may cache only what cannot change.
        cache_hints={
            "resources/list": CacheHint(ttl_ms=60_000),
            "resources/templates/list": CacheHint(ttl_ms=60_000),
        },
        get_tool_input_schema=everything.input_schema,
        on_list_tools=everything.list_tools,
        on_call_tool=everything.call_tool,
        on_list_resources=everything.list_resources,
        on_list_resource_templates=everything.list_resource_templates,
        on_read_resource=everything.read_resource,
        on_subscribe_resource=everything.subscribe,
        on_unsubscribe_resource=everything.unsubscribe,
        on_subscriptions_listen=ListenHandler(everything.state.bus),
        on_list_prompts=everything.list_prompts,
        on_get_prompt=everything.get_prompt,
        on_completion=everything.complete,
    )
    # Registered by name, because `on_set_logging_level=` warns that it is deprecated. Clients of the handshake era use
    # logging/setLevel; no request of 2026-07-28 gets here.
    instance.add_request_handler("logging/setLevel", types.SetLevelRequestParams, everything.set_level)
    return instance


def get_initialization_options(instance: Server[dict[str, Any]]) -> InitializationOptions:
    """Say that both lists may change. The SDK cannot see that from the handlers."""
    return instance.create_initialization_options(NotificationOptions(prompts_changed=True, tools_changed=True))
