"""What the catalog says of servers that are commands, before anybody has used them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry


def served(directory: Path, **entry: Any) -> Registry:
    """The registry of a host that serves one command, called tool."""
    folder = directory / "tool"
    folder.mkdir(exist_ok=True)
    (folder / "server.json").write_text(json.dumps(entry))
    return Registry(discover([directory]))


def program(directory: Path, mode: int = 0o755) -> Path:
    path = directory / "no-such-program"
    path.touch()
    path.chmod(mode)
    return path


def test_command_that_is_not_found_is_told_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    registry = served(tmp_path, command="no-such-program", args=["--token", "canary-6d2f"])
    warning = f"its command no-such-program was not found in PATH ({tmp_path}:/nowhere)"
    assert registry.names == ["tool"]
    assert registry.warnings() == {"tool": warning}
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message == f"Server tool cannot be used yet: {warning}"
    program(tmp_path)
    assert registry.warnings() == {}


@pytest.mark.parametrize(
    ("command", "path", "is_told"),
    [
        ("no-such-program", "${env:HOME}", False),
        ("no-such-program", "/usr/bin", True),
        # It differs from caller to caller.
        ("no-such-program", "/srv/${user_id}/bin", False),
        ("../no-such-program", "/usr/bin", False),
        ("./no-such-program", "/usr/bin", True),
    ],
)
def test_command_is_looked_for_where_its_process_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, path: str, is_told: bool
) -> None:
    program(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    registry = served(tmp_path, command=command, env={"PATH": path})
    assert bool(registry.warnings()) is is_told


def test_file_that_is_not_executable_is_told(tmp_path: Path) -> None:
    path = program(tmp_path, 0o644)
    assert served(tmp_path, command=str(path)).warnings() == {"tool": f"its command {path} is not executable"}


def test_remote_server_is_not_looked_for(tmp_path: Path) -> None:
    assert served(tmp_path, url="http://127.0.0.1:1/mcp").warnings() == {}
