"""Manifests: what is accepted, and the sentence for what is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.definitions import Discovery, ServerDefinition
from gateway.catalog.manifests import load_manifest
from gateway.catalog.registry import Registry
from gateway.exceptions import InstanceUnavailable
from gateway.instances.policies import Policies, default_policy
from gateway.upstreams.manifest import (
    CommandSource,
    ManifestError,
    RemoteSource,
    parse_manifest,
    read_json,
    read_servers_file,
)
from gateway.upstreams.placeholders import Caller, parse_text, render_folder, render_url
from gateway.upstreams.slots import Slots

HERE = Path("/srv/servers/files")


def parse(**entry: Any) -> Any:
    return parse_manifest(entry, HERE, {"HOME": "/home/op", "TOKEN": "t0ken"})


def test_entry_of_a_client_is_a_command() -> None:
    manifest = parse(command="npx", args=["-y", "pkg", "${user_id}"], env={"A": "${env:TOKEN}"}, disabled=False)
    assert isinstance(manifest.source, CommandSource)
    assert manifest.source.summary == "npx -y pkg ${user_id}"
    assert [text.render(Caller("ada", None)) for text in manifest.source.args] == ["-y", "pkg", "ada"]
    assert manifest.source.env["A"].render(Caller("ada", None)) == "t0ken"
    assert "t0ken" not in repr(manifest)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--api-key", "abc123", "next"], "x --api-key [redacted] next"),
        (["--token=abc123", "-v"], "x --token=[redacted] -v"),
        (["--api-key", "${api_key}", "--pat=${env:TOKEN}"], "x --api-key ${api_key} --pat=${env:TOKEN}"),
        (["--header", "Authorization: Bearer abcdefghijkl"], "x --header Authorization: [redacted]"),
        (["--keys", "a", "--monkey", "b"], "x --keys a --monkey b"),
    ],
)
def test_command_line_is_shown_without_secrets(arguments: list[str], shown: str) -> None:
    assert parse(command="x", args=arguments).source.summary == shown


def test_time_limit_of_a_manifest_is_the_servers_before_it_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "server.json").write_text('{"command": "x", "gumcp": {"callTimeoutSeconds": 5}}')
    loaded = load_manifest(tmp_path / "slow", Slots())
    assert isinstance(loaded, ServerDefinition)
    policies = Policies(Registry(Discovery([loaded])).own_call_timeout)
    assert policies.get("slow").call_timeout_seconds == 5
    assert policies.get("another") == default_policy()


def test_entry_with_a_url_is_remote() -> None:
    manifest = parse(url="https://mcp.example.com/u/${user_id}?k=${api_key}", headers={"X-Key": "${api_key}"})
    assert isinstance(manifest.source, RemoteSource)
    assert manifest.source.type == "http"
    assert manifest.source.summary == "https://mcp.example.com/u/${user_id}"
    url = render_url(manifest.source.url, Caller("a/d?a", "k&k"))
    assert url == "https://mcp.example.com/u/a%2Fd%3Fa?k=k%26k"
    assert parse(url="https://example.com/notes/ada:s3cret").source.summary == "https://example.com/notes/[redacted]"
    assert parse(url="https://example.com/sse").source.type == "sse"
    assert parse(serverUrl="https://example.com/mcp", type="streamable-http").source.type == "http"


def test_relative_command_and_folder_start_at_the_manifest() -> None:
    source = parse(command="./run", cwd="data").source
    assert source.command == "/srv/servers/files/run"
    assert source.cwd.source == "/srv/servers/files/data"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({}, "An entry needs either command or url"),
        ({"command": "x", "url": "https://e.com"}, "An entry needs either command or url"),
        ({"comand": "x"}, "comand is not a known key. Did you mean command?"),
        ({"command": "x", "gumcp": {"memoryMib": 5}}, "Did you mean memoryMiB?"),
        ({"command": "x", "gumcp": {"memoryMiB": 0}}, "memoryMiB: Input should be greater than 0"),
        ({"command": "x", "gumcp": {"per": "user"}}, "gumcp.per"),
        ({"command": "x", "args": "one"}, "args: Input should be a valid list"),
        ({"command": ""}, "command is empty"),
        ({"command": "${user_id}"}, "command cannot have placeholders"),
        ({"command": "x", "args": ["${usr}"]}, "is not a placeholder. Known are"),
        ({"command": "x", "args": ["${env:NOT_SET}"]}, "the environment variable NOT_SET is not set"),
        ({"command": "sh", "args": ["-c", "cd /srv && exec serve ${user_id}"]}, "a placeholder in code"),
        ({"command": "/bin/bash", "args": ["-lc", "serve --key=${api_key}"]}, "a placeholder in code"),
        ({"command": "env", "args": ["X=1", "python3.12", "-c", "print('${user_id}')"]}, "a placeholder in code"),
        ({"command": "node", "args": ["--eval", "run('${user_id}')"]}, "a placeholder in code"),
        ({"mcpServers": {"files": {"command": "x"}}}, "This is a whole mcpServers object"),
        ({"command": "x", "args": ["a\nb"]}, "A line break or NUL is not allowed"),
        ({"command": "x", "env": {"A=B": "c"}}, "env has a name that no variable can have"),
        ({"command": "x", "type": "http"}, "type http does not go with command"),
        ({"command": "x", "type": "pipe"}, "type 'pipe' is not known"),
        ({"command": "x", "gumcp": {"isolation": "process"}}, "is for a folder with a main.py"),
        ({"url": "ftp://example.com"}, "url must begin with http:// or https://"),
        ({"url": "https://${user_id}.example.com"}, "cannot have placeholders in its scheme or host"),
        ({"url": "https://user:pass@example.com"}, "cannot have a user or password"),
        ({"url": "http://169.254.169.254/latest"}, "link-local or metadata address"),
        ({"url": "http://[fe80::1]/"}, "link-local or metadata address"),
        ({"url": "http://[::ffff:169.254.169.254]/"}, "link-local or metadata address"),
        ({"url": "http://127.0.0.1/", "gumcp": {"allowPrivateAddresses": False}}, "a private address"),
        ({"url": "https://e.com", "args": ["x"]}, "args, env and cwd go with command"),
        ({"url": "https://e.com", "headers": {"Bad Name": "x"}}, "headers has a name that is not a header's"),
        ({"url": "https://e.com:notaport/"}, "url is not a URL"),
    ],
)
def test_wrong_entry_is_one_sentence(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(**entry)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", 'exec serve "$1"', "serve", "${user_id}"],
        ["python", "-m", "serve", "--user", "${user_id}"],
        ["sh", "-c", "exec serve ${env:HOME}"],
        ["serve", "-c", "${user_id}"],
    ],
)
def test_caller_may_be_an_argument_of_an_interpreter(command: list[str]) -> None:
    parse(command=command[0], args=command[1:])


def test_entry_that_is_not_an_object_is_one_sentence() -> None:
    with pytest.raises(ManifestError, match="must be a JSON object"):
        parse_manifest(["npx"], HERE)


def test_file_that_is_not_json_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text('{"command": \n oops}')
    with pytest.raises(ManifestError, match=r"The file is not JSON \(line 2\)"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_json(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_servers_file_gives_its_entries_without_disabled_ones(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"a": {"command": "x"}, "b": {"command": "y", "disabled": True}}}))
    assert read_servers_file(path) == {"a": {"command": "x"}}
    path.write_text("[]")
    with pytest.raises(ManifestError, match="no object mcpServers"):
        read_servers_file(path)


def test_line_breaks_in_a_callers_value_are_refused() -> None:
    text = parse_text("Bearer ${api_key}", {})
    with pytest.raises(InstanceUnavailable, match="line break"):
        text.render(Caller("ada", "a\r\nX-Evil: 1"))


@pytest.mark.parametrize("user_id", [".", ".."])
def test_callers_value_does_not_lead_to_another_path_of_a_remote_server(user_id: str) -> None:
    text = parse_text("https://example.com/users/${user_id}/mcp?of=${user_id}", {})
    with pytest.raises(InstanceUnavailable, match="cannot be dots"):
        render_url(text, Caller(user_id, None))
    assert render_url(text, Caller("a..", None)) == "https://example.com/users/a../mcp?of=a.."
    dotted = parse_text("https://example.com/${user_id}${api_key}/mcp", {})
    with pytest.raises(InstanceUnavailable, match="cannot be dots"):
        render_url(dotted, Caller(".", "."))


@pytest.mark.parametrize("user_id", ["..", ".", "../bob", "/etc", "a/../../bob"])
def test_callers_value_does_not_lead_to_another_folder(user_id: str) -> None:
    text = parse_text("/srv/../srv/data/${user_id}", {})
    with pytest.raises(InstanceUnavailable, match="folder"):
        render_folder(text, Caller(user_id, None))
    assert render_folder(text, Caller("ada.l", None)) == "/srv/../srv/data/ada.l"


@pytest.mark.parametrize("user_id", ["..", "../bob", "/etc"])
def test_callers_value_after_a_slash_is_one_name_of_a_path(user_id: str) -> None:
    with pytest.raises(InstanceUnavailable, match="folder"):
        parse_text("--root=/srv/files/${user_id}", {}).render_argument(Caller(user_id, None))
    assert parse_text("/srv/${user_id}/x", {}).render_local(Caller("ada", None)) == "/srv/ada/x"
    assert parse_text("${api_key}", {}).render_local(Caller("ada", "a/b+c")) == "a/b+c"
