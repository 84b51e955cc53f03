"""The bundled servers, each loaded by its path as the host does it and driven by the SDK's client in memory.

No part of `gateway` is involved: what is shown here holds for any program that serves them. A test that takes `era`
runs once with the handshake of 2025-11-25 and once with 2026-07-28.
"""

import importlib.util
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from mcp import types
from mcp.client import Client
from mcp.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ToolsListChanged

SERVERS = Path(__file__).resolve().parent.parent / "servers"
HANDSHAKE, MODERN = "legacy", "2026-07-28"
WAIT_SECONDS = 10

both_eras = pytest.mark.parametrize("era", [HANDSHAKE, MODERN])

with_deprecated_requests = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
"""The SDK's client warns of each request that only the handshake era has."""


def load(name: str) -> ModuleType:
    """Execute a server's main.py, without making it importable under any name."""
    spec = importlib.util.spec_from_file_location(f"bundled_{name}", SERVERS / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(name: str, user_id: str = "alice") -> Server[Any]:
    instance = load(name).server(user_id, "key")
    assert isinstance(instance, Server)
    return instance


@asynccontextmanager
async def connected(instance: Server[Any], era: str, **options: Any) -> AsyncIterator[Client]:
    with anyio.fail_after(WAIT_SECONDS):
        async with Client(instance, mode=era, **options) as client:
            yield client


def told(result: types.CallToolResult) -> str:
    """The text of a result that is not an error."""
    assert not result.is_error, result
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


def refused(result: types.CallToolResult) -> str:
    """The text of a result that is an error."""
    assert result.is_error, result
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


@pytest.mark.parametrize("name", ["simple-tools-server", "time", "everything"])
def test_initialization_options_name_the_server_and_its_version(name: str) -> None:
    module = load(name)

    options = module.get_initialization_options(module.server("alice", None))

    assert (options.server_name, options.server_version) == (name, "1.0.0")
    assert options.capabilities.tools is not None


@pytest.mark.parametrize("name", ["simple-tools-server", "time", "everything"])
def test_no_server_imports_the_host(name: str) -> None:
    source = (SERVERS / name / "main.py").read_text()

    assert "gateway" not in source
    assert "gumcp_site" not in source


# simple-tools-server


@both_eras
async def test_stored_data_is_answered_in_the_ancestors_words(era: str) -> None:
    async with connected(make("simple-tools-server"), era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == [
            "store-data",
            "retrieve-data",
            "list-data",
        ]
        assert told(await client.call_tool("list-data")) == "No data stored"
        assert told(await client.call_tool("store-data", {"key": "a", "value": "1"})) == "Stored 'a' with value: 1"
        assert told(await client.call_tool("store-data", {"key": "b", "value": "2"})) == "Stored 'b' with value: 2"
        assert told(await client.call_tool("retrieve-data", {"key": "a"})) == "Value for 'a': 1"
        assert told(await client.call_tool("retrieve-data", {"key": "c"})) == "Key 'c' not found"
        assert told(await client.call_tool("list-data")) == "Stored data:\n- a: 1\n- b: 2"


async def test_stored_data_outlives_a_connection_and_is_there_in_every_era() -> None:
    instance = make("simple-tools-server")
    async with connected(instance, HANDSHAKE) as client:
        await client.call_tool("store-data", {"key": "a", "value": "1"})

    async with connected(instance, MODERN) as client:
        assert told(await client.call_tool("retrieve-data", {"key": "a"})) == "Value for 'a': 1"


async def test_two_users_do_not_see_each_others_data() -> None:
    module = load("simple-tools-server")
    alice, bob = module.server("alice", None), module.server("bob", None)
    async with connected(alice, MODERN) as client:
        await client.call_tool("store-data", {"key": "a", "value": "1"})

    async with connected(bob, MODERN) as client:
        assert told(await client.call_tool("retrieve-data", {"key": "a"})) == "Key 'a' not found"
        assert told(await client.call_tool("list-data")) == "No data stored"


@both_eras
@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("store-data", {"key": "a"}, "Missing argument: value"),
        ("store-data", None, "Missing argument: key"),
        ("store-data", {"key": "a", "value": None}, "Missing argument: value"),
        ("store-data", {"key": "a", "value": 7}, "Argument 'value' must be a string"),
        ("retrieve-data", {"key": ["a"]}, "Argument 'key' must be a string"),
        ("delete-data", {}, "Unknown tool: delete-data"),
    ],
)
async def test_bad_calls_of_simple_tools_are_error_results(
    era: str, tool: str, arguments: dict[str, Any] | None, reason: str
) -> None:
    async with connected(make("simple-tools-server"), era) as client:
        assert refused(await client.call_tool(tool, arguments)) == reason
        assert told(await client.call_tool("list-data")) == "No data stored"


# time


@both_eras
async def test_current_time_is_now_in_utc_and_elsewhere(era: str) -> None:
    async with connected(make("time"), era) as client:
        await client.list_tools()  # The client checks structured content against the schemas that it has listed.
        in_utc = await client.call_tool("get_current_time")
        in_kolkata = await client.call_tool("get_current_time", {"timezone": "Asia/Kolkata"})

    for result, timezone, offset in ((in_utc, "UTC", "+00:00"), (in_kolkata, "Asia/Kolkata", "+05:30")):
        answer = result.structured_content
        assert (answer["timezone"], answer["utc_offset"], answer["is_dst"]) == (timezone, offset, False)
        assert abs(datetime.now(UTC) - datetime.fromisoformat(answer["datetime"])) < timedelta(seconds=WAIT_SECONDS)
        assert answer["datetime"].endswith(offset)
        assert told(result) == f"{answer['datetime']} {timezone}"


@both_eras
@pytest.mark.parametrize(
    ("source", "time", "target", "expected", "difference"),
    [
        ("Europe/Berlin", "2026-01-15T12:00", "America/New_York", "2026-01-15T06:00:00-05:00", "-06:00"),
        # America changes its clocks three weeks before Europe does.
        ("Europe/Berlin", "2026-03-20T12:00", "America/New_York", "2026-03-20T07:00:00-04:00", "-05:00"),
        ("UTC", "2026-07-01 00:30:15", "Asia/Kathmandu", "2026-07-01T06:15:15+05:45", "+05:45"),
        ("Etc/GMT+12", "2026-07-01T12:00", "Pacific/Kiritimati", "2026-07-02T14:00:00+14:00", "+26:00"),
        ("UTC", "2026-07-01T12:00", "UTC", "2026-07-01T12:00:00+00:00", "+00:00"),
    ],
)
async def test_times_are_converted_by_the_rules_of_their_day(
    era: str, source: str, time: str, target: str, expected: str, difference: str
) -> None:
    arguments = {"source_timezone": source, "time": time, "target_timezone": target}
    async with connected(make("time"), era) as client:
        await client.list_tools()
        result = await client.call_tool("convert_time", arguments)

    answer = result.structured_content
    assert answer["target"]["datetime"] == expected
    assert answer["time_difference"] == difference
    assert answer["is_ambiguous"] is False
    assert expected in told(result)


async def test_a_time_without_a_date_is_todays() -> None:
    async with connected(make("time"), MODERN) as client:
        before = datetime.now(UTC).date()
        result = await client.call_tool("convert_time", {"time": "14:30", "target_timezone": "Asia/Tokyo"})
        after = datetime.now(UTC).date()

    source = datetime.fromisoformat(result.structured_content["source"]["datetime"])
    assert before <= source.date() <= after
    assert (source.hour, source.minute, source.utcoffset()) == (14, 30, timedelta())
    assert "T23:30:00+09:00" in result.structured_content["target"]["datetime"]


async def test_daylight_saving_time_is_said() -> None:
    arguments = {"source_timezone": "Europe/Berlin", "time": "2026-07-01T12:00"}
    async with connected(make("time"), MODERN) as client:
        result = await client.call_tool("convert_time", arguments)

    assert result.structured_content["source"]["is_dst"] is True
    assert result.structured_content["target"]["is_dst"] is False
    assert "Europe/Berlin (daylight saving time)" in told(result)


async def test_a_time_that_the_clocks_show_twice_is_the_earlier_one_and_said_to_be_ambiguous() -> None:
    arguments = {"source_timezone": "Europe/Berlin", "time": "2026-10-25T02:30"}
    async with connected(make("time"), MODERN) as client:
        result = await client.call_tool("convert_time", arguments)

    assert result.structured_content["target"]["datetime"] == "2026-10-25T00:30:00+00:00"
    assert result.structured_content["is_ambiguous"] is True
    assert "show this time twice" in told(result)


@both_eras
@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("get_current_time", {"timezone": "Mars/Olympus"}, "Unknown time zone: 'Mars/Olympus'"),
        ("get_current_time", {"timezone": "../../etc/passwd"}, "Unknown time zone"),
        ("get_current_time", {"timezone": "/etc/localtime"}, "Unknown time zone"),
        ("get_current_time", {"timezone": "Europe"}, "Unknown time zone: 'Europe'"),
        ("get_current_time", {"timezone": ""}, "Unknown time zone: ''"),
        ("get_current_time", {"timezone": "U\0TC"}, "Unknown time zone"),
        ("get_current_time", {"timezone": "A" * 5000}, "Unknown time zone"),
        ("get_current_time", {"timezone": 3}, "Argument 'timezone' must be a string"),
        ("convert_time", {}, "Missing argument: time"),
        ("convert_time", {"time": "25:00"}, "Invalid time: '25:00'"),
        ("convert_time", {"time": "noon"}, "Invalid time: 'noon'"),
        ("convert_time", {"time": "2026-02-30T12:00"}, "Invalid time: '2026-02-30T12:00'"),
        ("convert_time", {"time": "12:00+02:00"}, "Invalid time: '12:00+02:00'"),
        ("convert_time", {"time": "12:00", "source_timezone": "Nowhere"}, "Unknown time zone: 'Nowhere'"),
        ("convert_time", {"time": "12:00", "target_timezone": "Nowhere"}, "Unknown time zone: 'Nowhere'"),
        (
            "convert_time",
            {"time": "2026-03-29T02:30", "source_timezone": "Europe/Berlin"},
            "02:30 does not exist on 2026-03-29 in Europe/Berlin: the clocks skip it that day",
        ),
        (
            "convert_time",
            {"time": "0001-01-01T00:00", "target_timezone": "America/New_York"},
            "0001-01-01T00:00 is outside of the years 1 to 9999",
        ),
        ("set_time", {"time": "12:00"}, "Unknown tool: set_time"),
    ],
)
async def test_bad_calls_of_time_are_error_results(era: str, tool: str, arguments: dict[str, Any], reason: str) -> None:
    async with connected(make("time"), era) as client:
        assert refused(await client.call_tool(tool, arguments)).startswith(reason)


# everything: what it offers


CONTRACT_TOOLS = {
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_tool_with_logging",
    "test_tool_with_progress",
    "test_sampling",
    "test_elicitation",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_error_handling",
    "test_reconnection",
    "json_schema_2020_12_tool",
    "test_x_mcp_header",
    "test_missing_capability",
    "test_input_required_result_elicitation",
    "test_input_required_result_sampling",
    "test_input_required_result_list_roots",
    "test_input_required_result_request_state",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_multi_round",
    "test_input_required_result_tampered_state",
    "test_input_required_result_capabilities",
    "test_trigger_tool_change",
    "test_trigger_prompt_change",
}


@both_eras
async def test_everything_offers_what_the_conformance_tool_asks_for(era: str) -> None:
    async with connected(make("everything"), era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        resources = {resource.uri for resource in (await client.list_resources()).resources}
        templates = {t.uri_template for t in (await client.list_resource_templates()).resource_templates}
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}

    assert set(tools) >= CONTRACT_TOOLS
    assert all(tool.description for tool in tools.values())
    assert tools["test_x_mcp_header"].input_schema["properties"]["region"]["x-mcp-header"] == "Region"
    schema = tools["json_schema_2020_12_tool"].input_schema
    assert schema["$defs"]["address"]["$anchor"] == "addressDef"
    assert {"allOf", "if", "then", "else"} <= set(schema)
    assert resources == {"test://static-text", "test://static-binary", "test://watched-resource"}
    assert templates == {"test://template/{id}/data"}
    assert prompts == {
        "test_simple_prompt",
        "test_prompt_with_arguments",
        "test_prompt_with_embedded_resource",
        "test_prompt_with_image",
        "test_input_required_result_prompt",
    }


async def test_everything_says_at_the_handshake_that_its_lists_change() -> None:
    module = load("everything")

    capabilities = module.get_initialization_options(module.server("alice", None)).capabilities

    assert capabilities.tools.list_changed
    assert capabilities.prompts.list_changed
    assert capabilities.resources.subscribe
    assert capabilities.logging is not None
    assert capabilities.completions is not None


@both_eras
async def test_each_kind_of_content_comes_back(era: str) -> None:
    async with connected(make("everything"), era) as client:
        mixed = await client.call_tool("test_multiple_content_types")
        audio = await client.call_tool("test_audio_content")
        text = await client.call_tool("test_simple_text")

    assert [block.type for block in mixed.content] == ["text", "image", "resource"]
    assert audio.content[0].mime_type == "audio/wav"
    assert told(text) == "This is a simple text response for testing."


@both_eras
async def test_a_failing_tool_is_an_error_result_and_an_unknown_one_a_protocol_error(era: str) -> None:
    async with connected(make("everything"), era) as client:
        failed = refused(await client.call_tool("test_error_handling"))
        bad_argument = refused(await client.call_tool("test_sampling", {"prompt": 7}))
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("test_unknown")

    assert failed == "This tool intentionally returns an error for testing"
    assert bad_argument == "Argument 'prompt' is required and must be a string"
    assert (unknown.value.code, unknown.value.message) == (-32602, "Unknown tool: test_unknown")


@both_eras
async def test_resources_are_read_and_templates_filled_in(era: str) -> None:
    async with connected(make("everything"), era) as client:
        static = (await client.read_resource("test://static-text")).contents[0]
        binary = (await client.read_resource("test://static-binary")).contents[0]
        data = (await client.read_resource("test://template/a%20b/data")).contents[0]

    assert static.text == "This is the content of the static text resource."
    assert binary.mime_type == "image/png"
    assert json.loads(data.text) == {"id": "a b", "templateTest": True, "data": "Data for ID: a b"}


@pytest.mark.parametrize(("era", "code"), [(HANDSHAKE, -32002), (MODERN, -32602)])
async def test_an_unknown_resource_gets_its_eras_error(era: str, code: int) -> None:
    async with connected(make("everything"), era) as client:
        with pytest.raises(MCPError) as error:
            await client.read_resource("test://nothing")

    assert (error.value.code, error.value.data) == (code, {"uri": "test://nothing"})


@both_eras
async def test_prompts_take_their_arguments_and_refuse_to_do_without(era: str) -> None:
    async with connected(make("everything"), era) as client:
        filled = await client.get_prompt("test_prompt_with_arguments", {"arg1": "hello", "arg2": "world"})
        with pytest.raises(MCPError, match="Argument 'arg2' is required"):
            await client.get_prompt("test_prompt_with_arguments", {"arg1": "hello"})
        with pytest.raises(MCPError, match="Unknown prompt: test_unknown"):
            await client.get_prompt("test_unknown")

    assert filled.messages[0].content.text == "Prompt with arguments: arg1='hello', arg2='world'"


@both_eras
async def test_completion_suggests_what_begins_like_the_value(era: str) -> None:
    prompt = types.PromptReference(name="test_prompt_with_arguments")
    async with connected(make("everything"), era) as client:
        some = await client.complete(prompt, {"name": "arg1", "value": "park"})
        none = await client.complete(prompt, {"name": "arg2", "value": ""})

    assert (some.completion.values, none.completion.values) == (["park"], [])


async def test_header_validation_finds_a_tools_schema_without_listing_all_tools() -> None:
    instance = make("everything")
    assert instance.get_tool_input_schema is not None

    schema = instance.get_tool_input_schema("test_x_mcp_header")

    assert schema is not None
    assert schema["properties"]["region"]["x-mcp-header"] == "Region"
    assert instance.get_tool_input_schema("test_unknown") is None


# everything: notifications of a call


@both_eras
async def test_progress_reaches_the_caller_in_order(era: str) -> None:
    seen: list[tuple[float, float | None]] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        seen.append((value, total))

    async with connected(make("everything"), era) as client:
        await client.call_tool("test_tool_with_progress", progress_callback=progress)

    assert seen == [(0, 100), (50, 100), (100, 100)]


LOGGED = ["Tool execution started", "Tool processing data", "Tool execution completed"]


@pytest.mark.parametrize(
    ("era", "wanted", "expected"),
    [(HANDSHAKE, None, LOGGED), (MODERN, None, []), (MODERN, "info", LOGGED), (MODERN, "warning", [])],
)
async def test_log_messages_come_to_who_wants_them(era: str, wanted: Any, expected: list[str]) -> None:
    seen: list[Any] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        seen.append(params.data)

    async with connected(make("everything"), era, logging_callback=log, log_level=wanted) as client:
        await client.call_tool("test_tool_with_logging")

    assert seen == expected


@with_deprecated_requests
async def test_a_set_level_silences_less_severe_messages() -> None:
    seen: list[Any] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        seen.append(params.data)

    async with connected(make("everything"), HANDSHAKE, logging_callback=log) as client:
        await client.set_logging_level("error")
        await client.call_tool("test_tool_with_logging")
        assert seen == []
        await client.set_logging_level("info")
        await client.call_tool("test_tool_with_logging")

    assert seen == LOGGED


@both_eras
async def test_a_stream_that_cannot_be_closed_does_not_keep_the_result(era: str) -> None:
    async with connected(make("everything"), era) as client:
        assert told(await client.call_tool("test_reconnection")) == "Reconnection test completed"


# everything: asking the client


class Answering:
    """A client's user, model and roots; remembers what was asked."""

    def __init__(self, action: str = "accept") -> None:
        self.action = action
        self.asked: list[Any] = []

    async def elicit(self, context: Any, params: Any) -> types.ElicitResult:
        self.asked.append(params)
        if self.action != "accept":
            return types.ElicitResult(action=self.action)  # type: ignore[arg-type]
        known = {"name": "Ada", "ok": True, "color": "green", "context": "the sea", "username": "ada", "email": "a@b.c"}
        wanted = params.requested_schema["properties"]
        return types.ElicitResult(action="accept", content={key: known.get(key, "x") for key in wanted})

    async def sample(self, context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        self.asked.append(params)
        content = types.TextContent(text=f"model answers {params.messages[0].content.text}")  # type: ignore[union-attr]
        return types.CreateMessageResult(role="assistant", content=content, model="test-model")

    async def list_roots(self, context: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri="file:///home/ada")])  # type: ignore[arg-type]

    @property
    def callbacks(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {
            "elicitation_callback": self.elicit,
            "sampling_callback": self.sample,
            "list_roots_callback": self.list_roots,
        }


@both_eras
@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("test_sampling", {"prompt": "hi"}, "LLM response: model answers hi"),
        (
            "test_elicitation",
            {"message": "Who?"},
            'User response: action=accept, content={"email": "a@b.c", "username": "ada"}',
        ),
        ("test_input_required_result_elicitation", {}, "Hello, Ada!"),
        ("test_input_required_result_sampling", {}, "model answers What is the capital of France?"),
        ("test_input_required_result_list_roots", {}, "Client roots: file:///home/ada"),
        ("test_input_required_result_request_state", {}, "state-ok, confirmed: True"),
        (
            "test_input_required_result_multiple_inputs",
            {},
            "Name: Ada\nGreeting: model answers Generate a greeting\nClient roots: file:///home/ada",
        ),
        ("test_input_required_result_multi_round", {}, "Ada likes green"),
        ("test_input_required_result_capabilities", {}, "The client answered: client_roots, greeting, user_name"),
        ("test_streaming_elicitation", {}, "Hello, Ada!"),
        ("test_missing_capability", {}, "The client declared sampling"),
    ],
)
async def test_a_tool_that_asks_gets_the_same_answers_in_both_eras(
    era: str, tool: str, arguments: dict[str, Any], answer: str
) -> None:
    instance = sealed(make("everything"))
    async with connected(instance, era, **Answering().callbacks) as client:
        assert told(await client.call_tool(tool, arguments)) == answer


@both_eras
async def test_a_prompt_asks_as_well(era: str) -> None:
    async with connected(make("everything"), era, **Answering().callbacks) as client:
        result = await client.get_prompt("test_input_required_result_prompt")

    assert result.messages[0].content.text == "Use this context: the sea"


@both_eras
async def test_a_user_may_decline(era: str) -> None:
    async with connected(make("everything"), era, **Answering("decline").callbacks) as client:
        greeted = await client.call_tool("test_input_required_result_elicitation")
        outcome = await client.call_tool("test_elicitation", {"message": "Who?"})

    assert told(greeted) == "Hello, (decline)!"
    assert told(outcome) == "User response: action=decline, content={}"


@both_eras
async def test_forms_carry_defaults_and_all_kinds_of_choices(era: str) -> None:
    answering = Answering("cancel")
    async with connected(make("everything"), era, **answering.callbacks) as client:
        await client.call_tool("test_elicitation_sep1034_defaults")
        await client.call_tool("test_elicitation_sep1330_enums")

    defaults, choices = (params.requested_schema["properties"] for params in answering.asked)
    assert {name: field["default"] for name, field in defaults.items()} == {
        "name": "John Doe",
        "age": 30,
        "score": 95.5,
        "status": "active",
        "verified": True,
    }
    assert choices["titledSingle"]["oneOf"][0] == {"const": "value1", "title": "First Option"}
    assert choices["legacyEnum"]["enumNames"] == ["Option One", "Option Two", "Option Three"]
    assert choices["titledMulti"]["items"]["anyOf"][0] == {"const": "value1", "title": "First Choice"}


@both_eras
@pytest.mark.parametrize(
    ("tool", "capability"),
    [
        ("test_missing_capability", "sampling"),
        ("test_input_required_result_sampling", "sampling"),
        ("test_input_required_result_elicitation", "elicitation"),
        ("test_input_required_result_list_roots", "roots"),
    ],
)
async def test_a_client_that_cannot_answer_is_not_asked(era: str, tool: str, capability: str) -> None:
    async with connected(make("everything"), era) as client:
        with pytest.raises(MCPError) as error:
            await client.call_tool(tool)

    assert error.value.code == -32021
    assert set(error.value.data["requiredCapabilities"]) == {capability}


@both_eras
async def test_only_what_the_client_declared_is_asked_for(era: str) -> None:
    answering = Answering()
    async with connected(make("everything"), era, sampling_callback=answering.sample) as client:
        answer = told(await client.call_tool("test_input_required_result_capabilities"))

    assert answer == "The client answered: greeting"


# everything: 2026-07-28's rounds and their state


def sealed(instance: Server[Any], key: bytes = b"k" * 32, audience: str = "everything") -> Server[Any]:
    """Do what the host does: put the SDK's boundary in front of everything else."""
    boundary = RequestStateBoundary(RequestStateSecurity(keys=[key]), default_audience=audience)
    instance.middleware.insert(0, boundary)
    return instance


async def round_of(client: Client, tool: str, **more: Any) -> types.CallToolResult | types.InputRequiredResult:
    result = await client.session.call_tool(tool, {}, allow_input_required=True, **more)
    assert isinstance(result, types.CallToolResult | types.InputRequiredResult)
    return result


CONFIRMED = {"confirm": types.ElicitResult(action="accept", content={"ok": True})}
STATEFUL = "test_input_required_result_tampered_state"


async def first_state(instance: Server[Any], tool: str = STATEFUL) -> str:
    async with connected(instance, MODERN, **Answering().callbacks) as client:
        first = await round_of(client, tool)
    assert isinstance(first, types.InputRequiredResult)
    assert first.request_state is not None
    return first.request_state


async def second_round(instance: Server[Any], state: str | None, tool: str = STATEFUL) -> Any:
    """Return the result of the second round, or the error that it was refused with."""
    async with connected(instance, MODERN, **Answering().callbacks) as client:
        try:
            return await round_of(client, tool, input_responses=CONFIRMED, request_state=state)
        except MCPError as error:
            return error


async def test_state_is_sealed_and_valid_after_a_restart_with_the_same_key() -> None:
    state = await first_state(sealed(make("everything")))
    assert "waiting" not in state

    assert told(await second_round(sealed(make("everything")), state)) == "state-ok, confirmed: True"


@pytest.mark.parametrize("suffix", ["-TAMPERED", "A"])
async def test_tampered_state_is_refused(suffix: str) -> None:
    instance = sealed(make("everything"))
    state = await first_state(instance)

    outcome = await second_round(instance, state + suffix)

    assert isinstance(outcome, MCPError)
    assert (outcome.code, outcome.data) == (-32602, {"reason": "invalid_request_state"})


@pytest.mark.parametrize(
    "elsewhere",
    [{"key": b"x" * 32}, {"audience": "everything of bob"}],
    ids=["another key", "another audience"],
)
async def test_state_from_elsewhere_is_refused(elsewhere: dict[str, Any]) -> None:
    state = await first_state(sealed(make("everything"), **elsewhere))

    outcome = await second_round(sealed(make("everything")), state)

    assert isinstance(outcome, MCPError)
    assert outcome.message == "Invalid or expired requestState"


async def test_state_of_one_tool_is_refused_by_another() -> None:
    instance = sealed(make("everything"))
    state = await first_state(instance, "test_input_required_result_request_state")

    outcome = await second_round(instance, state, STATEFUL)

    assert isinstance(outcome, MCPError)
    assert outcome.message == "Invalid or expired requestState"


async def test_answers_without_their_state_are_asked_for_again() -> None:
    again = await second_round(sealed(make("everything")), None)

    assert isinstance(again, types.InputRequiredResult)
    assert again.input_requests is not None
    assert list(again.input_requests) == ["confirm"]


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"wrong": types.ElicitResult(action="accept", content={"name": "Ada"})},
        {"user_name": types.ElicitResult(action="accept", content={"surname": "Lovelace"})},
        {"user_name": types.ListRootsResult(roots=[])},
    ],
    ids=["none", "under another key", "without the required field", "of another kind"],
)
async def test_answers_that_do_not_fit_are_asked_for_again(answers: dict[str, Any]) -> None:
    async with connected(make("everything"), MODERN, **Answering().callbacks) as client:
        result = await round_of(client, "test_input_required_result_elicitation", input_responses=answers)

    assert isinstance(result, types.InputRequiredResult)
    assert result.input_requests is not None
    assert list(result.input_requests) == ["user_name"]


async def test_answers_to_what_was_not_asked_are_ignored() -> None:
    answer = types.ElicitResult(action="accept", content={"name": "Ada"})
    async with connected(make("everything"), MODERN, **Answering().callbacks) as client:
        result = await round_of(
            client, "test_input_required_result_elicitation", input_responses={"user_name": answer, "other": answer}
        )

    assert isinstance(result, types.CallToolResult)
    assert told(result) == "Hello, Ada!"


# everything: changes


class Hearing:
    """Collects the notifications of one handshake-era connection."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[str](100)

    async def __call__(self, message: Any) -> None:
        await self._send.send(f"{message.method} {getattr(message.params, 'uri', '')}".strip())

    async def next(self) -> str:
        return await self._receive.receive()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


@asynccontextmanager
async def hearing(instance: Server[Any]) -> AsyncIterator[tuple[Client, Hearing]]:
    ears = Hearing()
    try:
        async with connected(instance, HANDSHAKE, message_handler=ears) as client:
            yield client, ears
    finally:
        ears.close()


@pytest.mark.parametrize(
    ("trigger", "notification"),
    [
        ("test_trigger_tool_change", "notifications/tools/list_changed"),
        ("test_trigger_prompt_change", "notifications/prompts/list_changed"),
    ],
)
async def test_a_handshake_era_client_is_notified_of_a_changed_list(trigger: str, notification: str) -> None:
    async with hearing(make("everything")) as (client, ears):
        await client.call_tool(trigger)
        assert await ears.next() == notification


@pytest.mark.parametrize(
    ("trigger", "filter_", "event"),
    [
        ("test_trigger_tool_change", {"tools_list_changed": True}, ToolsListChanged()),
        ("test_trigger_prompt_change", {"prompts_list_changed": True}, PromptsListChanged()),
        (
            "test_trigger_resource_update",
            {"resource_subscriptions": ["test://watched-resource"]},
            ResourceUpdated("test://watched-resource"),
        ),
    ],
)
async def test_a_listening_client_hears_of_a_change(trigger: str, filter_: dict[str, Any], event: Any) -> None:
    async with connected(make("everything"), MODERN) as client, client.listen(**filter_) as subscription:
        await client.call_tool(trigger)
        assert await anext(aiter(subscription)) == event


async def test_a_listening_client_hears_of_a_change_that_a_handshake_era_client_made() -> None:
    instance = make("everything")
    async with (
        connected(instance, MODERN) as listener,
        listener.listen(tools_list_changed=True) as subscription,
        connected(instance, HANDSHAKE) as other,
    ):
        await other.call_tool("test_trigger_tool_change")
        assert await anext(aiter(subscription)) == ToolsListChanged()


@both_eras
async def test_changed_lists_have_changed(era: str) -> None:
    async with connected(make("everything"), era) as client:
        for there in (True, False):
            await client.call_tool("test_trigger_tool_change")
            await client.call_tool("test_trigger_prompt_change")
            assert ("test_extra_tool" in {tool.name for tool in (await client.list_tools()).tools}) is there
            assert ("test_extra_prompt" in {p.name for p in (await client.list_prompts()).prompts}) is there


@with_deprecated_requests
async def test_subscribers_are_notified_until_they_unsubscribe() -> None:
    watched = "notifications/resources/updated test://watched-resource"
    changed = "notifications/tools/list_changed"
    instance = make("everything")
    async with hearing(instance) as (alice, alices), hearing(instance) as (bob, bobs):
        await alice.subscribe_resource("test://watched-resource")
        await bob.subscribe_resource("test://watched-resource")
        await bob.subscribe_resource("test://watched-resource")
        await alice.call_tool("test_trigger_resource_update")
        assert (await alices.next(), await bobs.next()) == (watched, watched)

        # Notifications of one connection keep their order: the next one shows that no second one came, and no later.
        await bob.unsubscribe_resource("test://watched-resource")
        await alice.call_tool("test_trigger_resource_update")
        await bob.call_tool("test_trigger_tool_change")
        assert (await alices.next(), await bobs.next()) == (watched, changed)

        text = (await bob.read_resource("test://watched-resource")).contents[0].text
    assert text == "Version 3 of the watched resource."


@with_deprecated_requests
async def test_subscriptions_do_not_pile_up() -> None:
    async with hearing(make("everything")) as (client, ears):
        await client.subscribe_resource("test://watched-resource")
        for number in range(100):
            await client.subscribe_resource(f"test://template/{number}/data")

        await client.call_tool("test_trigger_resource_update")
        await client.call_tool("test_trigger_tool_change")
        assert await ears.next() == "notifications/tools/list_changed"


@with_deprecated_requests
async def test_a_subscriber_that_is_gone_holds_nobody_up() -> None:
    instance = make("everything")
    async with connected(instance, HANDSHAKE) as gone:
        await gone.subscribe_resource("test://watched-resource")

    async with connected(instance, MODERN) as client:
        told_version = told(await client.call_tool("test_trigger_resource_update"))

    assert told_version == "test://watched-resource is at version 2"
