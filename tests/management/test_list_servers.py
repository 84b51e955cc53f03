"""`manage.py list_servers`. As a process, with servers that print, block or leave threads behind: `test_commands`."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command

from gateway.apps import GatewayConfig
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from tests.support.server_folders import WriteServer


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> ListServers:
    return ListServers(monkeypatch)


class ListServers:
    """Runs the command in a process whose servers are in one directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, directory: Path, *options: str) -> tuple[str, int]:
        """Return what it prints, and its exit status."""
        self._monkeypatch.setitem(vars(GatewayConfig.current()), "registry", Registry(discover([directory])))
        out, status = StringIO(), 0
        try:
            call_command("list_servers", *options, stdout=out)
        except SystemExit as error:
            status = int(str(error.code))
        return out.getvalue(), status


def test_status_is_1_and_the_reasons_are_told_if_a_server_failed(
    listed: ListServers, write_server: WriteServer
) -> None:
    write_server("leaving", "raise SystemExit(0)")
    write_server("admin")
    directory = write_server("sound")
    out, status = listed(directory)
    assert status == 1
    assert re.search(r"^leaving +failed +.*SystemExit", out, re.MULTILINE)
    assert re.search(r"^admin +failed +.*reserved", out, re.MULTILINE)
    assert re.search(r"^sound +loaded", out, re.MULTILINE)
    assert "Traceback" not in out


def test_traceback_is_shown_if_it_is_asked_for(listed: ListServers, write_server: WriteServer) -> None:
    directory = write_server("broken", "import store")
    (directory / "broken" / "store.py").write_text("\n1 / 0")
    out, _ = listed(directory, "--traceback")
    assert re.search(r"^broken +failed +.*In store.py, line 2: ZeroDivisionError", out, re.MULTILINE)
    assert f'File "{directory / "broken" / "store.py"}", line 2, in <module>' in out


def test_what_is_not_found_as_a_server_is_told(listed: ListServers, write_server: WriteServer) -> None:
    directory = write_server("sound")
    (directory / "weather").mkdir()
    (directory / "weather" / "server.py").write_text("")
    out, status = listed(directory)
    assert status == 0
    assert re.search(r"^weather +near miss +.*It has server.py, but no main.py", out, re.MULTILINE)
    assert out.splitlines()[-1] == "1 of 1 loaded"


def test_empty_directory_has_no_servers(listed: ListServers, tmp_path: Path) -> None:
    out, status = listed(tmp_path)
    assert (out.splitlines()[-1], status) == ("0 of 0 loaded", 0)


def test_command_that_is_not_found_is_told_without_its_secrets(listed: ListServers, tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    manifest = '{"command": "/no/such/command", "args": ["--token", "canary-6d2f"]}'
    (tmp_path / "tool" / "server.json").write_text(manifest)
    out, status = listed(tmp_path)
    assert status == 0
    assert "(cannot be used yet: its command /no/such/command does not exist)" in out
    assert "canary-6d2f" not in out
