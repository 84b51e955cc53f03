"""`manage.py startserver`: what it writes works as it is, and what it does not write it says."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from gateway.catalog.discovery import discover
from gateway.catalog.factories import make
from gateway.catalog.names import RESERVED_NAMES
from gateway.management.shell import this_python
from tests.support.processes import ROOT, manage, run
from tests.support.server_folders import WriteServer


def test_it_says_how_to_get_pytest_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call_command("startserver", "one", directory=tmp_path)
    assert "make dev" not in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    call_command("startserver", "two", directory=tmp_path)
    assert "`make dev` installs it" in capsys.readouterr().out


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(folder), data_dir=folder)


@pytest.mark.usefixtures("processes")
def test_new_server_is_served_and_its_tool_can_be_called(tmp_path: Path) -> None:
    servers = tmp_path / "servers"
    settings = {"GUMCP_SERVER_DIRS": str(servers), "GUMCP_LOG_LEVEL": "WARNING"}
    made = manage("startserver", "2nd-server.v3", data_dir=tmp_path, **settings)
    assert (made.returncode, made.stderr) == (0, "")
    called = manage("call", "2nd-server.v3", "greet", '{"name": "Ada"}', data_dir=tmp_path, **settings)
    assert (called.returncode, called.stderr) == (0, "")
    assert called.stdout == "Hello, Ada! This is greeting number 1 for local.\n"


@pytest.mark.usefixtures("processes")
def test_it_needs_no_database_and_loads_no_servers(tmp_path: Path, write_server: WriteServer) -> None:
    servers = write_server("loud", "raise RuntimeError('loaded')")
    made = manage(
        "startserver", "new", data_dir=tmp_path, GUMCP_SERVER_DIRS=str(servers), DATABASE_URL="sqlite:////no/such/db"
    )
    assert made.returncode == 0, made.stderr
    assert "loaded" not in made.stderr
    assert sorted(path.name for path in (servers / "new").iterdir()) == ["main.py", "pytest.ini", "test_new.py"]


@pytest.mark.usefixtures("processes")
def test_tests_of_two_new_servers_pass_together_inside_the_project_and_outside_of_it(tmp_path: Path) -> None:
    for name in ("one", "another-one"):
        call_command("startserver", name, directory=tmp_path, verbosity=0)
    inside = run_pytest(tmp_path, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
    assert inside.returncode == 0, inside.stdout
    assert "12 passed" in inside.stdout
    # As an author has it who knows nothing of this project's configuration: no plugins, no settings.
    outside = run_pytest(tmp_path, "-p", "no:django", "-p", "no:asyncio", "-W", "error")
    assert outside.returncode == 0, outside.stdout
    assert "12 passed" in outside.stdout


@pytest.mark.usefixtures("processes")
def test_tests_of_a_new_server_fail_when_its_tool_is_broken(tmp_path: Path) -> None:
    call_command("startserver", "broken", directory=tmp_path)
    main = tmp_path / "broken" / "main.py"
    main.write_text(main.read_text().replace("Hello, ", "Bye, "))
    assert "failed" in run_pytest(tmp_path).stdout


async def test_new_server_bears_its_name_and_not_the_templates(tmp_path: Path) -> None:
    call_command("startserver", "weather", directory=tmp_path)
    (definition,) = discover([tmp_path]).definitions
    _, options = await make(definition.style, "alice", None)
    assert options.server_name == "weather"
    for path in (tmp_path / "weather").glob("*.py"):
        assert "server_template" not in path.read_text()


def test_it_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("startserver", "weather", directory=tmp_path)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'weather' / 'main.py'}" in said
    assert f"{this_python()} -m pytest {tmp_path / 'weather'}\n" in said
    assert f"GUMCP_SERVER_DIRS={tmp_path} {this_python()} manage.py call weather greet name=Ada\n" in said
    assert "add it to GUMCP_SERVER_DIRS" in said


def test_it_says_nothing_of_directories_that_are_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with override_settings(GUMCP_SERVER_DIRS=[tmp_path / "servers", tmp_path / "more"]):
        call_command("startserver", "weather")
    said = capsys.readouterr().out
    assert "GUMCP_SERVER_DIRS" not in said
    assert f"{this_python()} -m pytest servers/weather\n" in said
    assert f"{this_python()} manage.py reload" in said
    assert (tmp_path / "servers" / "weather" / "main.py").is_file()


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match=r"reserved .*\. Choose another\."):
        call_command("startserver", name, directory=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "-x", "with space", "naïve", "a" * 101, "x\n", "a:b"])
def test_name_that_is_no_path_segment_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match="cannot be a server's name"):
        call_command("startserver", "--directory", str(tmp_path / "in"), "--", name)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CommandError, match=r"is taken by .*mine\. Choose another\."):
        call_command("startserver", "mine", directory=tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_name_that_another_served_directory_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"is taken by .*servers/plain/workshop\."):
        call_command("startserver", "workshop", directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_written_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"Cannot write .*: (File exists|Not a directory)\."):
        call_command("startserver", "new", directory=tmp_path / "file")


@pytest.mark.usefixtures("processes")
def test_refusal_is_one_line_on_standard_error_and_status_1(tmp_path: Path) -> None:
    refused = manage("startserver", "admin", "--directory", str(tmp_path / "in"), data_dir=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr.strip() == "CommandError: The name admin is reserved for the host's own pages. Choose another."
    )
