import logging
import signal
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.definitions import Discovery, LoadFailure, ServerDefinition
from gateway.catalog.discovery import discover, load_server
from gateway.catalog.names import DJANGO_SEGMENTS, RESERVED_NAMES
from gateway.exceptions import UnknownServer
from tests.support.server_folders import SOUND_SERVER, WriteServer


def load_failure(found: Discovery, name: str) -> Any:
    (failure,) = (failure for failure in found.failures if failure.name == name)
    return failure


def test_every_folder_with_a_main_is_found_in_a_stable_order(write_server: WriteServer) -> None:
    for name in ("zebra", "alpha", "middle"):
        directory = write_server(name)
    (directory / "no-main").mkdir()
    (directory / "file.py").write_text("")
    (directory / "main.py").write_text("raise RuntimeError('not a server')")
    found = discover([directory])
    assert [definition.name for definition in found.definitions] == ["alpha", "middle", "zebra"]
    assert not found.failures


def test_directories_are_searched_in_the_order_given(write_server: WriteServer) -> None:
    first, second = write_server("late", directory="b"), write_server("early", directory="a")
    assert [definition.name for definition in discover([first, second]).definitions] == ["late", "early"]


def test_folder_names_need_not_be_importable(write_server: WriteServer) -> None:
    directory = write_server("2nd-server.v3")
    assert [definition.name for definition in discover([directory]).definitions] == ["2nd-server.v3"]


@pytest.mark.parametrize(
    ("source", "reason", "traceback"),
    [
        ("def server(:\n", "SyntaxError", "main.py"),
        ("raise SystemExit(3)", "SystemExit", "raise SystemExit(3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "raise KeyboardInterrupt"),
        ("import no_such_module_anywhere", "ModuleNotFoundError", "no_such_module_anywhere"),
        ("1 / 0", "ZeroDivisionError", "1 / 0"),
        ("class Rude(BaseException): pass\nraise Rude('rude')", "Rude", "raise Rude"),
        ("def get_initialization_options(instance): ...", "no factory called server", ""),
        ("def server(user_id, api_key=None): ...", "no function get_initialization_options", ""),
        ("server = 1\ndef get_initialization_options(instance): ...", "server in main.py is of type int", ""),
        ("", "no factory called server", ""),
        ("\x00", "SyntaxError", ""),
    ],
)
def test_folder_that_cannot_be_served_is_kept_with_reason_and_traceback_and_stops_nothing(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture, source: str, reason: str, traceback: str
) -> None:
    write_server("aaa")
    write_server("broken", source)
    directory = write_server("zzz")
    with caplog.at_level(logging.INFO, logger="gateway"):
        found = discover([directory])
    assert [definition.name for definition in found.definitions] == ["aaa", "zzz"]
    failure = load_failure(found, "broken")
    assert failure.folder == directory / "broken"
    assert reason in failure.reason
    assert traceback in failure.traceback
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [reason in record.getMessage() and "broken" in record.getMessage() for record in warnings] == [True]


def test_file_that_is_not_utf8_is_a_failure(write_server: WriteServer) -> None:
    directory = write_server("latin")
    (directory / "latin" / "main.py").write_bytes(b"WORD = 'caf\xe9'\n")
    assert "SyntaxError" in load_failure(discover([directory]), "latin").reason


LAZY_CLIENT = """
    from django.utils.functional import SimpleLazyObject

    def connect():
        raise ConnectionError("nobody answers")

    client = SimpleLazyObject(connect)
"""

FACTORY = """
    def server(user_id, api_key=None): ...
"""

UNSIGNED = """
    class Factory:
        @property
        def __signature__(self):
            raise LookupError("unsigned")

        def __call__(self, user_id): ...

    server = Factory()
"""


# What a module has runs its code when it is looked at.
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (LAZY_CLIENT + FACTORY, "In main.py, line 5: ConnectionError: nobody answers"),
        (LAZY_CLIENT + "\n    server = client", "In main.py, line 5: ConnectionError: nobody answers"),
        ("def __getattr__(name): raise SystemExit(name)", "In main.py, line 1: SystemExit: server"),
        (UNSIGNED, "In main.py, line 5: LookupError: unsigned"),
    ],
)
def test_module_that_raises_when_it_is_looked_at_is_a_failure_with_traceback_and_stops_nothing(
    write_server: WriteServer, source: str, reason: str
) -> None:
    write_server("touchy", source)
    directory = write_server("zzz")
    before = set(sys.modules)
    found = discover([directory])
    assert [definition.name for definition in found.definitions] == ["zzz"]
    failure = load_failure(found, "touchy")
    assert failure.reason == reason
    assert "main.py" in failure.traceback
    left = [sys.modules[name] for name in set(sys.modules) - before]
    assert not [module for module in left if "touchy" in str(getattr(module, "__file__", ""))]


INDESCRIBABLE = """
    class Unspeakable(Exception):
        def __str__(self):
            raise SystemExit

    raise Unspeakable
"""


def test_exception_that_cannot_be_described_is_a_failure_and_stops_nothing(write_server: WriteServer) -> None:
    write_server("indescribable", INDESCRIBABLE)
    found = discover([write_server("zzz")])
    assert [definition.name for definition in found.definitions] == ["zzz"]
    assert "cannot be described" in load_failure(found, "indescribable").reason


def discover_in_thread(directory: Path) -> Discovery:
    """Load as a reload does."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(discover, [directory]).result(30)


def test_module_that_sets_signal_handlers_fails_in_a_reload_with_a_reason_that_says_why(
    write_server: WriteServer,
) -> None:
    source = "import signal\nsignal.signal(signal.SIGUSR2, signal.SIG_IGN)" + SOUND_SERVER.replace("\n    ", "\n")
    directory = write_server("signals", source)
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert not discover([directory]).failures
    finally:
        signal.signal(signal.SIGUSR2, before)
    failure = load_failure(discover_in_thread(directory), "signals")
    assert failure.reason.startswith("This code loads only in the main thread, where no reload is done: restart")
    assert "ValueError" in failure.reason


def test_module_that_asks_for_the_event_loop_loads_in_a_reload_too(write_server: WriteServer) -> None:
    source = """
        import asyncio
        LOOP = asyncio.get_event_loop()
        ANSWER = LOOP.run_until_complete(asyncio.sleep(0, "asked"))
    """
    found = discover_in_thread(write_server("loop", textwrap.dedent(source) + textwrap.dedent(SOUND_SERVER)))
    assert not found.failures
    loop = found.definitions[0].style.server.__globals__["LOOP"]
    # It is the module's to keep.
    assert not loop.is_closed()
    loop.close()


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_reserved_name_is_refused_without_executing_the_module(write_server: WriteServer, name: str) -> None:
    directory = write_server(name, "raise AssertionError('executed')")
    failure = load_failure(discover([directory]), name)
    assert "reserved" in failure.reason
    assert not failure.traceback


def test_names_of_the_hosts_own_pages_are_reserved() -> None:
    assert {"admin", "health_check", "metrics", "static"} <= RESERVED_NAMES
    assert DJANGO_SEGMENTS <= RESERVED_NAMES


@pytest.mark.parametrize("name", ["with space", "-dash", ".hidden", "ümlaut", "a:b", "x" * 101])
def test_name_that_cannot_stand_in_a_url_is_refused(write_server: WriteServer, name: str) -> None:
    assert "name" in load_failure(discover([write_server(name)]), name).reason


def test_repeated_name_is_served_from_the_first_directory(write_server: WriteServer) -> None:
    first = write_server("twin", directory="first")
    second = write_server("twin", "raise AssertionError('executed')", directory="second")
    found = discover([first, second])
    assert [definition.folder for definition in found.definitions] == [first / "twin"]
    failure = load_failure(found, "twin")
    assert failure.folder == second / "twin"
    assert str(first / "twin") in failure.reason


def test_name_of_a_folder_that_failed_is_free_for_the_next_directory(write_server: WriteServer) -> None:
    first, second = write_server("twin", "1 / 0", directory="first"), write_server("twin", directory="second")
    found = discover([first, second])
    assert [definition.folder for definition in found.definitions] == [second / "twin"]
    assert len(found.failures) == 1


def test_missing_directory_is_logged_and_stops_nothing(
    write_server: WriteServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = discover([tmp_path / "nowhere", write_server("sound")])
    assert [definition.name for definition in found.definitions] == ["sound"]
    assert "nowhere" in caplog.text


def test_server_directory_that_cannot_be_listed_stops_nothing(write_server: WriteServer, tmp_path: Path) -> None:
    loop = tmp_path / "odd" / "loop"
    loop.mkdir(parents=True)
    (loop / "main.py").symlink_to(loop / "main.py")
    assert [definition.name for definition in discover([loop.parent, write_server("sound")]).definitions] == ["sound"]


def test_modules_of_equal_folder_names_do_not_see_each_other(write_server: WriteServer) -> None:
    source = SOUND_SERVER + "\n    WHERE = __file__\n"
    one, two = write_server("a-b", source), write_server("a_b", source)
    assert one == two
    modules = {sys.modules[definition.style.server.__module__] for definition in discover([one]).definitions}
    assert {Path(str(module.WHERE)).parent.name for module in modules} == {"a-b", "a_b"}


def test_module_may_import_its_siblings_relatively(write_server: WriteServer) -> None:
    directory = write_server("split", "from .words import WORD\n" + "\n".join(SOUND_SERVER.split("\n    ")))
    (directory / "split" / "words.py").write_text("WORD = 'found'")
    assert [definition.name for definition in discover([directory]).definitions] == ["split"]


def test_module_that_failed_leaves_no_half_module_behind(write_server: WriteServer) -> None:
    before = set(sys.modules)
    discover([write_server("broken", "1 / 0")])
    assert not [name for name in set(sys.modules) - before if "broken" in name]


def test_log_lines_of_the_ancestor_are_kept(write_server: WriteServer, caplog: pytest.LogCaptureFixture) -> None:
    write_server("broken", "1 / 0")
    with caplog.at_level(logging.INFO, logger="gateway"):
        discover([write_server("sound")])
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert messages == ["Loaded server: sound", "Discovered 1 servers"]


# -- one server by its name


def test_one_server_is_loaded_by_its_name_and_no_other_and_nothing_is_logged(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture
) -> None:
    write_server("beside", "raise AssertionError('executed')")
    directory = write_server("wanted")
    with caplog.at_level(logging.DEBUG, logger="gateway"):
        outcome = load_server("wanted", [directory])
    assert isinstance(outcome, ServerDefinition)
    assert outcome.folder == directory / "wanted"
    assert not caplog.records


def test_one_server_is_the_one_that_a_host_would_serve(write_server: WriteServer) -> None:
    first, second = write_server("twin", "1 / 0", directory="first"), write_server("twin", directory="second")
    assert load_server("twin", [first, second]).folder == second / "twin"
    write_server("twin", "1 / 0", directory="second")
    failure = load_server("twin", [first, second])
    assert isinstance(failure, LoadFailure)
    assert failure.folder == first / "twin"


def test_one_server_that_there_is_not_is_an_error_with_the_names_that_there_are(write_server: WriteServer) -> None:
    write_server("weather")
    directory = write_server("time")
    with pytest.raises(UnknownServer, match="Did you mean weather"):
        load_server("wether", [directory])


@pytest.mark.parametrize("name", ["../weather", "", ".", "weather/"])
def test_name_of_one_server_is_never_a_path(write_server: WriteServer, name: str) -> None:
    write_server("weather", directory="servers")
    with pytest.raises(UnknownServer):
        load_server(name, [write_server("time", directory="beside")])
