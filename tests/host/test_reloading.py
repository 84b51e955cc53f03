"""Reloads inside this process. What clients see of them is in `e2e.test_reload`."""

import asyncio
import logging
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from django.test import override_settings

from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.host.reloading import Reloader
from gateway.instances.instances import Instances
from gateway.instances.lanes import Lanes
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies
from tests.support.processes import until
from tests.support.server_folders import WriteServer


@asynccontextmanager
async def reloading(*server_dirs: Path, load_timeout_seconds: float = 5) -> AsyncIterator[tuple[Registry, Reloader]]:
    """A registry of what is in `server_dirs`, and its reloader."""
    with override_settings(GUMCP_SERVER_DIRS=server_dirs, GUMCP_LOAD_TIMEOUT_SECONDS=load_timeout_seconds):
        lanes = Lanes()
        instances = Instances(lanes, Listings(), Policies())
        registry = Registry(discover(list(server_dirs)))
        try:
            yield registry, Reloader(registry, instances, on_switched=lambda name: None, on_removed=lambda name: None)
        finally:
            await instances.stop()
            await asyncio.to_thread(lanes.stop)


def loads() -> list[threading.Thread]:
    """The threads that load `hanging`."""
    return [thread for thread in threading.enumerate() if thread.name == "load-hanging"]


UNREACHABLE = """
    from django.utils.functional import SimpleLazyObject

    def connect():
        raise ConnectionError("nobody answers")

    client = SimpleLazyObject(connect)

    def server(user_id, api_key=None): ...
"""

UNSPEAKABLE = """
    class Unspeakable(Exception):
        def __str__(self):
            raise SystemExit

    raise Unspeakable
"""


async def test_reload_ends_with_the_reason_whatever_the_new_code_raises(write_server: WriteServer) -> None:
    directory = write_server("touchy")
    async with reloading(directory) as (registry, reloader):
        served = registry.get("touchy")
        for source, reason in ((UNREACHABLE, "ConnectionError"), (UNSPEAKABLE, "cannot be described")):
            write_server("touchy", source)
            await reloader.update(names=["touchy"])
            assert [reason in failure.reason for failure in registry.failures] == [True]
        assert registry.get("touchy") is served


async def test_change_of_an_isolated_folders_code_is_taken_and_of_its_manifest_only_if_it_says_something_else(
    write_server: WriteServer,
) -> None:
    directory = write_server("apart")
    manifest = directory / "apart" / "server.json"
    manifest.write_text('{"gumcp": {"isolation": "process"}}')
    async with reloading(directory) as (registry, reloader):
        first = registry.get("apart")
        await reloader.update(changed_paths=[manifest])
        assert registry.get("apart") is first
        await reloader.update(changed_paths=[directory / "apart" / "main.py"])
        second = registry.get("apart")
        assert second is not first
        manifest.write_text('{"gumcp": {"isolation": "process", "memoryMiB": 512}}')
        await reloader.update(changed_paths=[manifest])
        assert registry.get("apart") is not second


not_while_tracing = pytest.mark.skipif(
    sys.gettrace() is not None and sys.version_info < (3, 12),
    reason="Python 3.11 never ends a traced call while an exception waits for a blocked thread",
)
"""`PyThreadState_SetAsyncExc` interrupts all threads until the blocked one has taken the exception. With a trace
function, such as coverage's, Python 3.11 begins the same call again and again meanwhile."""


# It disables the loggers of the host before and after it waits for a pipe to be opened, where no exception reaches it.
HANGING = """
    import logging.config, sys

    logging.config.dictConfig({"version": 1})
    sys.path.append("/vandal")
    open(__file__.rpartition("/servers/")[0] + "/go-on").close()
    logging.config.dictConfig({"version": 1})
    sys.path.append("/vandal")
"""


@not_while_tracing
async def test_load_that_is_given_up_has_changed_nothing_and_changes_nothing_when_it_ends(
    write_server: WriteServer,
) -> None:
    ours = logging.getLogger("gateway.host.reloading")

    def state() -> tuple[object, ...]:
        output = os.fstat(1)
        return (ours.disabled, list(sys.path), sys.stdout, output.st_dev, output.st_ino)

    directory = write_server("beside")
    async with reloading(directory, load_timeout_seconds=0.5) as (registry, reloader):
        before, modules = state(), set(sys.modules)
        write_server("hanging", HANGING)
        os.mkfifo(directory.parent / "go-on")
        later = logging.NullHandler()
        try:
            await reloader.update()
            (load,) = loads()
            assert [failure.reason for failure in registry.failures] == [
                "main.py was not loaded after 0.5 seconds: it was in main.py, line 6."
            ]
            assert state() == before
            first = registry.get("beside")
            await reloader.update(names=["beside"])
            assert registry.get("beside") is not first
            assert state() == before
            ours.addHandler(later)
            assert load.is_alive()
            (directory.parent / "go-on").write_bytes(b"")
            await asyncio.to_thread(until, lambda: not load.is_alive())
            assert later in ours.handlers
            assert state() == before
            left = [str(getattr(sys.modules[name], "__file__", "")) for name in set(sys.modules) - modules]
            assert not [path for path in left if "hanging" in path]
        finally:
            ours.removeHandler(later)
            ours.disabled = False


# Logging's own lock is held meanwhile, as by a handler that connects to a host which does not answer.
HANGING_IN_LOGGING = """
    import logging.config

    def connect():
        open(__file__.rpartition("/servers/")[0] + "/go-on").close()
        return logging.NullHandler()

    logging.config.dictConfig({"version": 1, "handlers": {"slow": {"()": connect}}})
"""


@not_while_tracing
async def test_load_that_hangs_in_logging_does_not_hold_up_the_host_when_it_is_given_up(
    write_server: WriteServer,
) -> None:
    directory = write_server("hanging", "1 / 0")
    async with reloading(directory, load_timeout_seconds=0.2) as (registry, reloader):
        # What it says of this one it says of the next without asking logging for its level.
        await reloader.update(names=["hanging"])
        write_server("hanging", HANGING_IN_LOGGING)
        os.mkfifo(directory.parent / "go-on")
        await reloader.update(names=["hanging"])
        (load,) = loads()
        (directory.parent / "go-on").write_bytes(b"")
        await asyncio.to_thread(until, lambda: not load.is_alive())
        assert [failure.reason for failure in registry.failures] == [
            "main.py was not loaded after 0.2 seconds: it was in main.py, line 5."
        ]


async def test_server_does_not_notice_that_a_folder_goes_which_was_refused_for_its_name(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.host.reloading")
    first, second = write_server("twin", directory="first"), write_server("twin", directory="second")
    async with reloading(first, second) as (registry, reloader):
        served = registry.get("twin")
        shutil.rmtree(second / "twin")
        await reloader.update()
        assert not registry.failures
        assert registry.get("twin") is served
    gone = [message for message in caplog.messages if message.endswith("is gone")]
    assert gone == [f"{second / 'twin'}, which could not be served, is gone"]


async def test_name_of_a_folder_that_goes_is_free_for_the_one_that_was_refused_for_it(
    write_server: WriteServer,
) -> None:
    first, second = write_server("twin", directory="first"), write_server("twin", directory="second")
    async with reloading(first, second) as (registry, reloader):
        shutil.rmtree(first / "twin")
        await reloader.update()
        assert not registry.failures
        assert registry.get("twin").folder == second / "twin"


async def test_folder_that_is_not_found_as_a_server_is_known_until_it_is_one(write_server: WriteServer) -> None:
    directory = write_server("sound")
    async with reloading(directory) as (registry, reloader):
        source = (directory / "sound" / "main.py").read_text()
        (directory / "weather").mkdir()
        (directory / "weather" / "server.py").write_text(source)
        await reloader.update()
        (missed,) = registry.near_misses
        assert (missed.name, missed.hint.startswith("It has server.py, but no main.py.")) == ("weather", True)
        assert registry.names == ["sound"]
        (directory / "weather" / "main.py").write_text("from server import *")
        await reloader.update()
        assert not registry.near_misses
        assert registry.names == ["sound", "weather"]
