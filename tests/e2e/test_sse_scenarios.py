"""HTTP+SSE with the reference server: the scenarios that the conformance tool runs over Streamable HTTP only.

Names and expected values are those of the tool (0.2.0-alpha.12). What is told and asked on its own (logs, progress,
questions, changes) is in `test_server_to_client` for every era; here are the forms that only this suite looks at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS
from tests.support.wire import SseStream

CAPABILITIES = {"sampling": {}, "elicitation": {}, "roots": {"listChanged": True}}


@pytest.fixture(scope="module")
def host(start_host: StartHost) -> Iterator[HostProcess]:
    with start_host(server_dirs=BUNDLED_SERVERS) as host:
        yield host


@pytest.fixture
def client(host: HostProcess) -> Iterator[SseStream]:
    """An initialized session that can be asked anything, of an instance of its own."""
    with host.session("everything", f"user-{uuid4().hex}:key", capabilities=CAPABILITIES) as client:
        yield client


def result(client: SseStream, method: str, params: Any = None) -> Any:
    answer = client.request(method, params)
    assert "result" in answer, answer
    return answer["result"]


def call(client: SseStream, tool: str, **arguments: Any) -> Any:
    return result(client, "tools/call", {"name": tool, "arguments": arguments})


def asked(client: SseStream, tool: str, answer: Any, **arguments: Any) -> tuple[Any, str]:
    """Call a tool that asks; returns what it asked and what it made of the answer."""
    request_id = f"asking {tool}"
    client.send(
        {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    )
    event = client.next_event()
    assert event is not None
    question = event.json
    client.send({"jsonrpc": "2.0", "id": question["id"], **answer})
    return question, client.answer(request_id)["result"]["content"][0]["text"]


# -- The session -----------------------------------------------------------------------------------------------------


def test_initialize_tells_what_the_server_can(host: HostProcess) -> None:
    with host.stream("everything", "ada") as client:
        told = client.initialize()
    assert told["serverInfo"]["name"] == "everything"
    assert told["serverInfo"]["version"] == "1.0.0"
    assert told["instructions"]
    assert told["capabilities"]["tools"] == {"listChanged": True}
    assert told["capabilities"]["prompts"] == {"listChanged": True}
    assert told["capabilities"]["resources"]["subscribe"] is True
    assert {"logging", "completions"} <= told["capabilities"].keys()


def test_ping_is_answered_with_an_empty_result(client: SseStream) -> None:
    assert result(client, "ping") == {}


@pytest.mark.parametrize("level", ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"])
def test_every_log_level_can_be_set(client: SseStream, level: str) -> None:
    assert result(client, "logging/setLevel", {"level": level}) == {}


def test_unknown_log_level_is_an_error(client: SseStream) -> None:
    assert client.request("logging/setLevel", {"level": "loud"})["error"]["code"] == -32602


def test_log_messages_below_the_set_level_are_not_sent(client: SseStream) -> None:
    result(client, "logging/setLevel", {"level": "error"})
    call(client, "test_tool_with_logging")
    assert client.notifications() == []
    result(client, "logging/setLevel", {"level": "info"})
    call(client, "test_tool_with_logging")
    assert [note["params"]["data"] for note in client.notifications()] == [
        "Tool execution started",
        "Tool processing data",
        "Tool execution completed",
    ]
    assert {note["params"]["level"] for note in client.notifications()} == {"info"}


@pytest.mark.parametrize("token", ["progress-test-1", 7])
def test_progress_carries_the_token_that_the_client_chose(client: SseStream, token: str | int) -> None:
    params = {"name": "test_tool_with_progress", "arguments": {}, "_meta": {"progressToken": token}}
    result(client, "tools/call", params)
    notes = [note["params"] for note in client.notifications() if note["method"] == "notifications/progress"]
    assert [(note["progressToken"], note["progress"], note["total"]) for note in notes] == [
        (token, 0, 100),
        (token, 50, 100),
        (token, 100, 100),
    ]


def test_completion_suggests_values(client: SseStream) -> None:
    argument = {"name": "arg1", "value": "par"}
    for reference in (
        {"type": "ref/prompt", "name": "test_prompt_with_arguments"},
        {"type": "ref/resource", "uri": "test://template/{id}/data"},
    ):
        completion = result(client, "completion/complete", {"ref": reference, "argument": argument})["completion"]
        assert completion == {"values": ["paris", "park", "party"], "total": 3, "hasMore": False}


# -- Tools -----------------------------------------------------------------------------------------------------------


def test_tools_are_listed_with_their_schemas(client: SseStream) -> None:
    tools = {tool["name"]: tool for tool in result(client, "tools/list")["tools"]}
    assert len(tools) > 20
    assert all(tool["description"] and tool["inputSchema"]["type"] == "object" for tool in tools.values())
    schema = tools["json_schema_2020_12_tool"]["inputSchema"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$defs"]["address"]["$anchor"] == "addressDef"
    assert {"allOf", "if", "then", "else"} <= schema.keys()
    assert schema["additionalProperties"] is False


def test_text_is_returned(client: SseStream) -> None:
    assert call(client, "test_simple_text")["content"] == [
        {"type": "text", "text": "This is a simple text response for testing."}
    ]


@pytest.mark.parametrize(
    ("tool", "kind", "mime_type", "magic"),
    [
        ("test_image_content", "image", "image/png", b"\x89PNG"),
        ("test_audio_content", "audio", "audio/wav", b"RIFF"),
    ],
)
def test_binary_content_is_returned(client: SseStream, tool: str, kind: str, mime_type: str, magic: bytes) -> None:
    (content,) = call(client, tool)["content"]
    assert (content["type"], content["mimeType"]) == (kind, mime_type)
    assert base64.b64decode(content["data"], validate=True).startswith(magic)


def test_embedded_resource_is_returned(client: SseStream) -> None:
    (content,) = call(client, "test_embedded_resource")["content"]
    assert content["type"] == "resource"
    assert content["resource"] == {
        "uri": "test://embedded-resource",
        "mimeType": "text/plain",
        "text": "This is an embedded resource content.",
    }


def test_several_kinds_of_content_are_returned_in_order(client: SseStream) -> None:
    contents = call(client, "test_multiple_content_types")["content"]
    assert [content["type"] for content in contents] == ["text", "image", "resource"]
    assert json.loads(contents[2]["resource"]["text"]) == {"test": "data", "value": 123}


def test_failure_of_a_tool_is_a_result(client: SseStream) -> None:
    failed = call(client, "test_error_handling")
    assert failed["isError"] is True
    assert failed["content"] == [{"type": "text", "text": "This tool intentionally returns an error for testing"}]


def test_unknown_tool_is_an_error(client: SseStream) -> None:
    assert client.request("tools/call", {"name": "no_such_tool", "arguments": {}})["error"]["code"] == -32602


def test_call_that_could_close_its_stream_elsewhere_is_answered_here_as_any_other(client: SseStream) -> None:
    assert call(client, "test_reconnection")["content"][0]["text"] == "Reconnection test completed"


# -- Questions to the client -----------------------------------------------------------------------------------------


def test_model_of_the_client_is_asked(client: SseStream) -> None:
    sampled = {"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m", "stopReason": "endTurn"}
    question, told = asked(client, "test_sampling", {"result": sampled}, prompt="The capital of France?")
    assert question["method"] == "sampling/createMessage"
    assert question["params"]["maxTokens"] == 100
    assert question["params"]["messages"] == [
        {"role": "user", "content": {"type": "text", "text": "The capital of France?"}}
    ]
    assert told == "LLM response: Paris"


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
def test_user_of_the_client_is_asked(client: SseStream, action: str) -> None:
    content = {"username": "ada", "email": "ada@example.com"} if action == "accept" else {}
    answer = {"action": action, **({"content": content} if content else {})}
    question, told = asked(client, "test_elicitation", {"result": answer}, message="Who are you?")
    assert question["method"] == "elicitation/create"
    assert question["params"]["message"] == "Who are you?"
    assert question["params"]["requestedSchema"]["required"] == ["username", "email"]
    assert told == f"User response: action={action}, content={json.dumps(content, sort_keys=True)}"


def test_form_has_defaults_of_every_kind(client: SseStream) -> None:
    question, told = asked(client, "test_elicitation_sep1034_defaults", {"result": {"action": "accept", "content": {}}})
    properties = question["params"]["requestedSchema"]["properties"]
    assert {name: field["default"] for name, field in properties.items()} == {
        "name": "John Doe",
        "age": 30,
        "score": 95.5,
        "status": "active",
        "verified": True,
    }
    assert {field["type"] for field in properties.values()} == {"string", "integer", "number", "boolean"}
    assert told.startswith("Elicitation completed: action=accept")


def test_form_has_choices_of_every_kind(client: SseStream) -> None:
    chosen = {"untitledSingle": "option1", "titledMulti": ["value1", "value2"]}
    answer = {"result": {"action": "accept", "content": chosen}}
    question, told = asked(client, "test_elicitation_sep1330_enums", answer)
    fields = question["params"]["requestedSchema"]["properties"]
    assert fields["untitledSingle"]["enum"] == ["option1", "option2", "option3"]
    assert fields["titledSingle"]["oneOf"][0] == {"const": "value1", "title": "First Option"}
    assert fields["legacyEnum"]["enumNames"] == ["Option One", "Option Two", "Option Three"]
    assert fields["untitledMulti"]["items"]["enum"] == ["option1", "option2", "option3"]
    assert fields["titledMulti"]["items"]["anyOf"][1] == {"const": "value2", "title": "Second Choice"}
    assert json.dumps(chosen, sort_keys=True) in told


def test_roots_of_the_client_are_asked(client: SseStream) -> None:
    answer = {"result": {"roots": [{"uri": "file:///home/ada", "name": "home"}]}}
    question, told = asked(client, "test_input_required_result_list_roots", answer)
    assert question["method"] == "roots/list"
    assert told == "Client roots: file:///home/ada"


def test_client_that_refuses_to_answer_fails_the_call_only(client: SseStream) -> None:
    call_of = {"name": "test_sampling", "arguments": {"prompt": "x"}}
    client.send({"jsonrpc": "2.0", "id": "refused", "method": "tools/call", "params": call_of})
    event = client.next_event()
    assert event is not None
    client.send({"jsonrpc": "2.0", "id": event.json["id"], "error": {"code": -1, "message": "The user said no"}})
    answer = client.answer("refused")
    assert "error" in answer or answer["result"]["isError"]
    assert result(client, "ping") == {}


def test_client_is_not_asked_for_what_it_did_not_declare(host: HostProcess) -> None:
    with host.session("everything", "plain:key") as client:
        answer = client.request("tools/call", {"name": "test_sampling", "arguments": {"prompt": "x"}})
        assert answer["error"]["code"] == -32021
        answer = client.request("tools/call", {"name": "test_missing_capability", "arguments": {}})
        assert answer["error"]["code"] == -32021
        assert client.is_silent()


# -- Resources -------------------------------------------------------------------------------------------------------


def test_resources_and_templates_are_listed(client: SseStream) -> None:
    resources = {resource["uri"]: resource for resource in result(client, "resources/list")["resources"]}
    assert resources.keys() == {"test://static-text", "test://static-binary", "test://watched-resource"}
    assert all(resource["name"] and resource["mimeType"] for resource in resources.values())
    (template,) = result(client, "resources/templates/list")["resourceTemplates"]
    assert template["uriTemplate"] == "test://template/{id}/data"


def test_text_binary_and_template_are_read(client: SseStream) -> None:
    (text,) = result(client, "resources/read", {"uri": "test://static-text"})["contents"]
    assert text["text"] == "This is the content of the static text resource."
    assert (text["uri"], text["mimeType"]) == ("test://static-text", "text/plain")
    (binary,) = result(client, "resources/read", {"uri": "test://static-binary"})["contents"]
    assert base64.b64decode(binary["blob"], validate=True).startswith(b"\x89PNG")
    (filled,) = result(client, "resources/read", {"uri": "test://template/123/data"})["contents"]
    assert filled["uri"] == "test://template/123/data"
    assert json.loads(filled["text"])["id"] == "123"


def test_unknown_resource_is_an_error_of_this_era(client: SseStream) -> None:
    assert client.request("resources/read", {"uri": "test://no-such"})["error"]["code"] == -32002


def test_subscriber_hears_of_an_update_until_it_unsubscribes(client: SseStream) -> None:
    watched = {"uri": "test://watched-resource"}

    def updates() -> list[Any]:
        notes = (note for note in client.notifications() if note["method"] == "notifications/resources/updated")
        return [note["params"] for note in notes]

    call(client, "test_trigger_resource_update")
    assert updates() == []
    assert result(client, "resources/subscribe", watched) == {}
    call(client, "test_trigger_resource_update")
    assert updates() == [watched]
    assert result(client, "resources/unsubscribe", watched) == {}
    call(client, "test_trigger_resource_update")
    assert updates() == [watched]
    assert "Version 4" in result(client, "resources/read", watched)["contents"][0]["text"]


def test_subscriber_hears_of_what_another_connection_of_its_key_changed(host: HostProcess) -> None:
    watched = {"uri": "test://watched-resource"}
    with host.session("everything", "two:key") as one, host.session("everything", "two:key") as other:
        result(one, "resources/subscribe", watched)
        call(other, "test_trigger_resource_update")
        event = one.next_event()
        assert event is not None
        assert event.json["method"] == "notifications/resources/updated"
        assert other.notifications() == []


# -- Prompts ---------------------------------------------------------------------------------------------------------


def prompt(client: SseStream, name: str, **arguments: str) -> list[Any]:
    return list(result(client, "prompts/get", {"name": name, "arguments": arguments})["messages"])


def test_prompts_are_listed_with_their_arguments(client: SseStream) -> None:
    prompts = {prompt["name"]: prompt for prompt in result(client, "prompts/list")["prompts"]}
    assert {"test_simple_prompt", "test_prompt_with_image", "test_prompt_with_embedded_resource"} <= prompts.keys()
    arguments = prompts["test_prompt_with_arguments"]["arguments"]
    assert [(argument["name"], argument["required"]) for argument in arguments] == [("arg1", True), ("arg2", True)]


def test_prompts_of_every_form_are_returned(client: SseStream) -> None:
    (simple,) = prompt(client, "test_simple_prompt")
    assert simple == {"role": "user", "content": {"type": "text", "text": "This is a simple prompt for testing."}}
    (filled,) = prompt(client, "test_prompt_with_arguments", arg1="hello", arg2="world")
    assert filled["content"]["text"] == "Prompt with arguments: arg1='hello', arg2='world'"
    embedded, told = prompt(client, "test_prompt_with_embedded_resource", resourceUri="test://any")
    assert embedded["content"]["resource"]["uri"] == "test://any"
    assert told["content"]["type"] == "text"
    image, told = prompt(client, "test_prompt_with_image")
    assert (image["content"]["type"], image["content"]["mimeType"]) == ("image", "image/png")
    assert told["content"]["text"]


def test_prompt_without_its_argument_and_unknown_prompt_are_errors(client: SseStream) -> None:
    for params in ({"name": "test_prompt_with_arguments"}, {"name": "no_such_prompt"}):
        assert client.request("prompts/get", params)["error"]["code"] == -32602


# -- Changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "lists", "extra"),
    [
        ("test_trigger_tool_change", "tools", "test_extra_tool"),
        ("test_trigger_prompt_change", "prompts", "test_extra_prompt"),
    ],
)
def test_change_of_a_list_is_told_and_seen(client: SseStream, tool: str, lists: str, extra: str) -> None:
    for is_offered in (True, False):
        call(client, tool)
        listed = {item["name"] for item in result(client, f"{lists}/list")[lists]}
        assert (extra in listed) is is_offered
    told = [note["method"] for note in client.notifications()]
    assert told == [f"notifications/{lists}/list_changed"] * 2
