"""`gumcp`, the command of an installed host, and what both commands print about themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gateway import __version__
from gateway.management.command_line import NO_READER, ending_without_reader, run
from gateway.management.shell import this_command, this_python


@pytest.mark.parametrize("argument", ["--version", "version"])
def test_version_is_that_of_gumcp(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["gumcp", argument])
    assert capsys.readouterr().out == f"gumcp {__version__}\n"


def test_commands_to_copy_begin_with_manage_py_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", "serve"])
    assert this_command() == f"{this_python()} manage.py"


@pytest.mark.parametrize("is_on_path", [True, False])
def test_commands_to_copy_begin_with_gumcp_where_it_is_installed(
    is_on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gumcp"
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "serve"])
    monkeypatch.setenv("PATH", str(tmp_path) if is_on_path else os.defpath)
    assert this_command() == ("gumcp" if is_on_path else str(program))


@pytest.mark.parametrize("status", [0, 1])
def test_command_whose_reader_has_gone_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)

        def command() -> None:
            with ending_without_reader():
                print("a line")
                sys.exit(status)

        with pytest.raises(SystemExit) as ended:
            command()
        # Python does so when the process ends.
        unread.flush()
    assert ended.value.code == NO_READER
