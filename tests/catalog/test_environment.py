"""Environment variables of servers that set their own."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.discovery import discover
from gateway.catalog.loading import Project
from tests.support.server_folders import SOUND_SERVER, WriteServer

SOUND = SOUND_SERVER.replace("\n    ", "\n")

DOTENV = """
import os
from dotenv import load_dotenv
load_dotenv()
KEY = os.environ["VENDOR_KEY_OF_TEST"]
def key():
    return os.environ["VENDOR_KEY_OF_TEST"], os.getenv("VENDOR_KEY_OF_TEST"), os.environ.get("VENDOR_KEY_OF_TEST")
"""


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Put the environment of the process back after the test."""
    before, environ = dict(os.environ), os.environ
    yield
    assert os.environ is environ
    assert type(environ) is os._Environ
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    for name in [name for name in sys.modules if name.startswith("gumcp_server_")]:
        del sys.modules[name]


def load(directory: Path) -> dict[str, dict[str, Any]]:
    """Load servers, and return the globals of their main modules."""
    found = discover([directory])
    assert not found.failures, found.failures[0].traceback
    return {definition.name: definition.style.server.__globals__ for definition in found.definitions}


def process_environment() -> dict[str, str]:
    """The environment of the process, but for what pytest writes there."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def write_dotenv(write_server: WriteServer, name: str, value: str) -> Path:
    if sys.gettrace() is not None:
        pytest.skip("dotenv takes the tracing of coverage for a debugger, and then does not look beside the module")
    directory = write_server(name, DOTENV + SOUND)
    (directory / name / ".env").write_text(f"VENDOR_KEY_OF_TEST={value}\n")
    return directory


def test_each_server_has_the_values_of_its_own_dotenv_file_when_it_is_loaded_and_later(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture
) -> None:
    write_dotenv(write_server, "one", "key of one")
    servers = load(write_dotenv(write_server, "two", "key of two"))
    for name, server in servers.items():
        assert server["KEY"] == f"key of {name}"
        seen: list[object] = []
        thread = threading.Thread(target=lambda server=server, seen=seen: seen.append(server["key"]()))
        thread.start()
        thread.join(10)
        assert seen == [server["key"]()] == [(f"key of {name}",) * 3]
    assert os.environ["VENDOR_KEY_OF_TEST"] == "key of one"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("Servers one and two set VENDOR_KEY_OF_TEST to different values.")
    assert "key of" not in line


def test_server_that_is_added_or_reloaded_later_has_its_own_values_and_disturbs_nobody(
    write_server: WriteServer,
) -> None:
    directory = write_dotenv(write_server, "one", "key of one")
    one = load(directory)["one"]
    watching = """
        import os, threading
        seen = []
        thread = threading.Thread(target=lambda: seen.append(os.path.expandvars("$VENDOR_KEY_OF_TEST")))
        thread.start()
        thread.join()
    """
    write_server("two", watching.replace("\n        ", "\n") + DOTENV + SOUND)
    (directory / "two" / ".env").write_text("VENDOR_KEY_OF_TEST=key of two\n")
    for value in ("key of two", "new key of two"):
        (directory / "two" / ".env").write_text(f"VENDOR_KEY_OF_TEST={value}\n")
        outcome: Any = Project(directory, is_reload=True).load(directory / "two", {})
        two = outcome.style.server.__globals__
        assert (two["KEY"], two["key"]()[0], one["key"]()[0]) == (value, value, "key of one")
        # What others read meanwhile.
        assert two["seen"] == ["key of one"]


def test_server_that_is_reloaded_has_the_new_values_of_its_file(write_server: WriteServer) -> None:
    directory = write_dotenv(write_server, "one", "old")
    load(directory)
    write_dotenv(write_server, "one", "new")
    outcome: Any = Project(directory, is_reload=True).load(directory / "one", {})
    assert outcome.style.server.__globals__["KEY"] == "new"
    assert os.environ["VENDOR_KEY_OF_TEST"] == "new"


@pytest.mark.usefixtures("processes")
def test_variable_that_a_server_adds_is_seen_by_libraries_and_child_processes(write_server: WriteServer) -> None:
    source = "import os\nos.environ['ADDED_BY_TEST'] = 'x'\nos.environ['PATH'] = '/mine:' + os.environ['PATH']\n"
    load(write_server("one", source + SOUND))
    program = "import os; print(os.environ['ADDED_BY_TEST'], os.environ['PATH'][:6])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "x /mine:\n"


@pytest.mark.parametrize(
    "vandalism",
    ["os.environ['PATH'] = '/vandal'", "del os.environ['PATH']", "os.environ.clear()", "os.environ.pop('PATH')"],
)
@pytest.mark.parametrize("outcome", ["loads", "fails"])
def test_hosts_variables_stay_as_they_are_and_the_server_sees_what_it_has_set(
    write_server: WriteServer, vandalism: str, outcome: str
) -> None:
    before = process_environment()
    source = f"import os\n{vandalism}\nSEEN = os.environ.get('PATH')\n" + SOUND
    directory = write_server("vandal", source if outcome == "loads" else f"{source}\n1 / 0")
    found = discover([directory])
    assert process_environment() == before
    if outcome == "loads":
        expected = "/vandal" if "/vandal" in vandalism else None
        server = found.definitions[0].style.server.__globals__
        assert (server["SEEN"], server["os"].environ.get("PATH")) == (expected, expected)


def test_failed_load_leaves_no_variable_behind(write_server: WriteServer) -> None:
    before = process_environment()
    discover([write_server("failing", "import os\nos.environ['ADDED_BY_TEST'] = 'x'\n1 / 0")])
    assert process_environment() == before


def test_environment_of_a_server_works_as_that_of_the_process(write_server: WriteServer) -> None:
    source = """
        import os
        from os import environ, getenv, path
        import os.path as same_path
        environ.setdefault("ADDED_BY_TEST", "x")
        environ |= {"OTHER_OF_TEST": "y"}
        CHECKS = {
            "same object": os.environ is environ,
            "get": getenv("ADDED_BY_TEST") == environ.get("ADDED_BY_TEST") == "x",
            "default": getenv("NO_SUCH_OF_TEST", "z") == "z" and getenv("NO_SUCH_OF_TEST") is None,
            "in": "OTHER_OF_TEST" in environ and "NO_SUCH_OF_TEST" not in environ,
            "copy": environ.copy() == dict(environ) == {**environ},
            "len": len(environ) == len(list(environ)),
            "path": path is os.path is same_path and path.join("a", "b") == "a/b",
            "module": os.getcwd() and os.name == "posix" and os.__name__ == "os",
        }
        try:
            environ["ADDED_BY_TEST"] = 1
        except TypeError:
            CHECKS["text only"] = True
        try:
            environ["NO_SUCH_OF_TEST"]
        except KeyError:
            CHECKS["missing"] = True
        os.environ.pop("OTHER_OF_TEST")
        CHECKS["removed"] = "OTHER_OF_TEST" not in environ and os.getenv("OTHER_OF_TEST") is None
    """
    server = load(write_server("one", source.replace("\n        ", "\n") + SOUND))["one"]
    assert {name for name, is_right in server["CHECKS"].items() if not is_right} == set()
    assert len(server["CHECKS"]) == 11
    assert "OTHER_OF_TEST" not in os.environ
    server["environ"]["ADDED_BY_TEST"] = "later"
    assert os.environ["ADDED_BY_TEST"] == "later"


def test_time_zone_of_a_server_is_not_the_hosts(write_server: WriteServer) -> None:
    before = os.environ.get("TZ")
    source = "import os, time\nos.environ['TZ'] = 'Asia/Tokyo'\ntime.tzset()\n"
    server = load(write_server("one", source + SOUND))["one"]
    assert server["os"].environ["TZ"] == "Asia/Tokyo"
    assert os.environ.get("TZ") == before
