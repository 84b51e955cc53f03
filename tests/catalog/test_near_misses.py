"""What is not found as a server, although its author probably meant it to be."""

import logging
from pathlib import Path

import pytest

from gateway.catalog.discovery import discover, load_server
from gateway.catalog.near_misses import near_misses
from gateway.exceptions import UnknownServer
from tests.support.server_folders import WriteServer

SERVER = "from mcp.server import MCPServer\nmcp = MCPServer('x')\n"

NEAR_MISSES = {
    "server.py": "It has server.py, but no main.py. Rename or move the file, or add a main.py with the line "
    "`from server import server` (or the name that the server has there).",
    "app.py": "It has app.py, but no main.py.",
    "__main__.py": "It has __main__.py, but no main.py. Rename or move the file.",
    "weather.py": "It has weather.py, but no main.py. Rename",
    "forecast.py": "It has forecast.py, but no main.py. Rename",
    "Main.py": "It has Main.py, but no main.py. Rename the file.",
    "MAIN.PY": "It has MAIN.PY, but no main.py. Rename the file.",
    "main.py.txt": "It has main.py.txt, but no main.py. Rename the file.",
    "main.py/x.py": "Its main.py is not a file that can be read.",
    "src/main.py": "It has src/main.py, but no main.py. Rename or move the file, or add a main.py with the line "
    "`from src.main import server`",
    "src/weather/main.py": "It has src/weather/main.py, but no main.py.",
    "my-src/main.py": "It has my-src/main.py, but no main.py. Rename or move the file.",
    "package.json": "It has package.json, but no main.py. A server in another language needs a server.json.",
}


@pytest.mark.parametrize(("file", "hint"), NEAR_MISSES.items())
def test_folder_without_a_main_is_told_what_to_do(tmp_path: Path, file: str, hint: str) -> None:
    path = tmp_path / "weather" / file
    path.parent.mkdir(parents=True)
    path.write_text(SERVER)
    (found,) = near_misses(tmp_path)
    assert (found.name, found.folder) == ("weather", tmp_path / "weather")
    assert found.hint.startswith(hint)


@pytest.mark.parametrize(
    "file",
    [
        "server.json",
        "data.json",
        "helpers.py",
        ".venv/lib/main.py",
        "node_modules/x/main.py",
        "main.py",
        "tests/main.py",
    ],
)
def test_folder_that_is_a_server_or_not_meant_to_be_one_gets_no_hint(tmp_path: Path, file: str) -> None:
    path = tmp_path / "shared" / file
    path.parent.mkdir(parents=True)
    path.write_text("# makes no MCPServer('x')\nVALUE = 1\n")
    assert near_misses(tmp_path) == []


def test_file_that_should_be_a_folder_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "weather.py").write_text(SERVER)
    (tmp_path / "words.py").write_text("WORD = 1")
    assert [found.hint for found in near_misses(tmp_path)] == [
        "A server is a folder. Move weather.py to weather/main.py."
    ]


def test_directory_of_servers_one_level_too_high_is_told_where_they_are(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "src" / "servers" / name).mkdir(parents=True)
        (tmp_path / "src" / "servers" / name / "main.py").write_text(SERVER)
    (found,) = near_misses(tmp_path)
    assert (
        found.hint == f"It contains folders with a main.py. Add it to GUMCP_SERVER_DIRS: {tmp_path / 'src' / 'servers'}"
    )


def test_directory_of_servers_that_is_a_server_itself_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SERVER)
    (found,) = near_misses(tmp_path)
    assert found.hint == f"This is a server's own folder. Name the folder that contains it: {tmp_path.parent}"


def test_directory_that_does_not_exist_has_no_near_misses(tmp_path: Path) -> None:
    assert near_misses(tmp_path / "nowhere") == []


def test_near_miss_is_in_the_log_and_stops_nothing(write_server: WriteServer, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_server("sound")
    (directory / "weather").mkdir()
    (directory / "weather" / "server.py").write_text(SERVER)
    found = discover([directory])
    assert [definition.name for definition in found.definitions] == ["sound"]
    assert not found.failures
    assert [missed.name for missed in found.near_misses] == ["weather"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{directory / 'weather'} is not served: It has server.py, but no main.py.")


@pytest.mark.parametrize("file", ["weather/server.py", "weather.py"])
def test_server_that_is_asked_for_by_name_and_is_a_near_miss_is_told_so(write_server: WriteServer, file: str) -> None:
    directory = write_server("sound")
    (directory / "weather").mkdir()
    (directory / file).write_text(SERVER)
    with pytest.raises(UnknownServer, match="is not served"):
        load_server("weather", [directory])
