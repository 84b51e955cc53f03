"""`manage.py inspect`: what one server offers."""

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from tests.support.processes import ROOT
from tests.support.server_folders import WriteServer


@pytest.fixture(autouse=True)
def bundled_servers() -> object:
    with override_settings(GUMCP_SERVER_DIRS=[ROOT / "servers"]):
        yield


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    call_command("inspect", *arguments)
    return capsys.readouterr().out


def test_tools_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, "time")
    assert text.startswith("time: time 1.0.0, protocol 2025-11-25\n")
    assert "  convert_time\n      Convert a local time of one time zone to another time zone\n" in text
    assert "    source_timezone (string, default UTC)\n        Time zone of the given time" in text
    assert "    time (string, required)\n" in text
    assert "Resources" not in text


@pytest.mark.parametrize("protocol", ["2025-11-25", "2026-07-28"])
def test_json_has_everything_as_the_protocol_writes_it(capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    facts = json.loads(inspect(capsys, "everything", "--json", "--protocol", protocol))
    assert facts["protocol"] == protocol
    assert facts["server"]["name"] == "everything"
    assert {"test_simple_text", "test_elicitation"} <= {tool["name"] for tool in facts["tools"]}
    assert all("inputSchema" in tool for tool in facts["tools"])
    assert facts["resources"]
    assert facts["resourceTemplates"]
    assert {"test_simple_prompt", "test_prompt_with_arguments"} <= {prompt["name"] for prompt in facts["prompts"]}


def test_resources_templates_and_prompts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, "everything")
    for title in ("Tools", "Resources", "Resource templates", "Prompts"):
        assert f"\n{title}\n" in text
    assert "  test://static-text\n" in text
    assert "    arg1 (string, required)" in text


def test_resource_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, "everything", "--resource", "test://static-text")
    assert text == "This is the content of the static text resource.\n"
    assert "characters of base64" in inspect(capsys, "everything", "--resource", "test://static-binary")


def test_prompt_is_got(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, "everything", "--prompt", "test_prompt_with_arguments", "arg1=one", "arg2=2")
    assert text.startswith("user: ")
    assert "one" in text
    assert "2" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tim"], "There is no server called tim. Did you mean time?"),
        (["everything", "--prompt", "test_promt"], "everything has no prompt test_promt. Did you mean test_"),
        (["everything", "--prompt", "test_prompt_with_arguments", "one"], "Cannot read the argument 'one': write key="),
        (["everything", "--resource", "test://nothing"], "Resource not found"),
    ],
)
def test_unknown_name_is_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("inspect", *arguments)
    assert sentence in str(raised.value)


def test_failing_handler_shows_the_authors_line(write_server: WriteServer) -> None:
    directory: Path = write_server(
        "broken",
        """
        from mcp.server import Server

        async def list_tools(ctx, params):
            raise LookupError("no tools today")

        server = Server("broken", version="1", on_list_tools=list_tools)
        """,
    )
    with override_settings(GUMCP_SERVER_DIRS=[directory]), pytest.raises(CommandError) as raised:
        call_command("inspect", "broken")
    assert "LookupError: no tools today" in str(raised.value)
    assert "main.py" in str(raised.value)
    assert "site-packages" not in str(raised.value)
