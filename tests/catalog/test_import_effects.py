"""What a module changes in the process while it is loaded is put back."""

import asyncio
import builtins
import decimal
import faulthandler
import gc
import http.client
import locale
import logging
import os
import random
import resource
import select
import signal
import socket
import ssl
import string
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.catalog.definitions import Discovery
from gateway.catalog.discovery import discover
from tests.support.processes import ROOT, environment
from tests.support.server_folders import SOUND_SERVER, WriteServer


def test_what_runs_when_a_module_is_looked_at_is_undone(write_server: WriteServer) -> None:
    source = "import sys\ndef __getattr__(name): sys.path.append('/vandal')" + SOUND_SERVER.replace("\n    ", "\n")
    # Looked at for its options, which it lacks.
    source = source.partition("def get_initialization_options")[0]
    before = list(sys.path)
    discover([write_server("vandal", source)])
    assert sys.path == before


def test_loading_leaves_sys_path_as_it_was(write_server: WriteServer) -> None:
    before = list(sys.path)
    directory = write_server("adds", "import sys\nsys.path.insert(0, '/vandal')" + SOUND_SERVER.replace("\n    ", "\n"))
    write_server("rebinds", "import sys\nsys.path = ['/vandal', *sys.path]" + SOUND_SERVER.replace("\n    ", "\n"))
    write_server("fails", "import sys\nsys.path.append('/vandal')\n1 / 0")
    found = discover([directory])
    assert sys.path == before
    assert len(found.definitions) == 2


@contextmanager
def undisturbed_logging() -> Iterator[None]:
    """Keep what a failing test does to logging from the tests after it."""
    root = logging.getLogger()
    state = (list(root.handlers), root.level, root.manager.disable, logging.getLoggerClass())
    factory = logging.getLogRecordFactory()
    ours = logging.getLogger("gateway.catalog.discovery")
    try:
        yield
    finally:
        root.handlers[:] = state[0]
        root.setLevel(state[1])
        logging.disable(state[2])
        logging.setLoggerClass(state[3])
        logging.setLogRecordFactory(factory)
        ours.disabled, ours.propagate, ours.handlers[:] = False, True, []
        ours.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    "vandalism",
    [
        "logging.basicConfig(level=logging.DEBUG, force=True)",
        "logging.getLogger().addHandler(logging.NullHandler())",
        "logging.getLogger().setLevel(logging.CRITICAL)",
        "logging.getLogger().handlers = []",
        "logging.disable(logging.CRITICAL)",
        "logging.getLogger('gateway.catalog.discovery').setLevel(logging.CRITICAL)",
        "logging.getLogger('gateway.catalog.discovery').addHandler(logging.NullHandler())",
        "logging.getLogger('gateway.catalog.discovery').propagate = False",
        "import logging.config; logging.config.dictConfig({'version': 1})",
        "logging.setLoggerClass(type('Mine', (logging.Logger,), {}))",
        "logging.setLogRecordFactory(lambda *a, **k: logging.LogRecord(*a, **k))",
        "logging.getLogger().addFilter(lambda record: False)",
    ],
)
def test_loading_leaves_logging_as_it_was(write_server: WriteServer, vandalism: str) -> None:
    root, ours = logging.getLogger(), logging.getLogger("gateway.catalog.discovery")

    def state() -> tuple[Any, ...]:
        return (
            list(root.handlers),
            root.level,
            list(root.filters),
            root.manager.disable,
            logging.getLoggerClass(),
            logging.getLogRecordFactory(),
            *(ours.disabled, ours.level, ours.propagate, list(ours.handlers)),
        )

    directory = write_server("vandal", f"import logging\n{vandalism}\n" + SOUND_SERVER.replace("\n    ", "\n"))
    with undisturbed_logging():
        before = state()
        assert len(discover([directory]).definitions) == 1
        assert state() == before


def test_what_a_module_prints_stays_out_of_standard_output(
    write_server: WriteServer, capsys: pytest.CaptureFixture[str]
) -> None:
    discover([write_server("chatty", "print('hello from import')" + SOUND_SERVER.replace("\n    ", "\n"))])
    captured = capsys.readouterr()
    assert "hello from import" not in captured.out
    assert "hello from import" in captured.err


# -- the process


def process_state() -> dict[str, Any]:
    """Everything that a module must not change, as it is now."""
    umask = os.umask(0o022)
    os.umask(umask)
    modules = (asyncio, builtins, os, select, signal, socket, ssl, subprocess, sys, threading, time)
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return {
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "timers": [signal.getitimer(timer) for timer in timers],
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "traces": (sys.gettrace(), sys.getprofile(), tracemalloc.is_tracing()),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)),
        "faulthandler": faulthandler.is_enabled(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "timeout": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "umask": umask,
        "directory": os.getcwd(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": os.sched_getaffinity(0),
        "argv": list(sys.argv),
        "path": (sys.path, list(sys.path)),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "descriptors": [(os.fstat(number).st_dev, os.fstat(number).st_ino) for number in (0, 1, 2)],
        "import hooks": [hook for hook in sys.meta_path if hook in KNOWN_HOOKS],
        "json": sys.modules["json"],
        "debuglevel": http.client.HTTPConnection.debuglevel,
        "opener": urllib.request._opener,  # type: ignore[attr-defined]
        "loop": asyncio.SelectorEventLoop.run_forever,
        "policy": asyncio.get_event_loop_policy(),
        "modules": [dict(vars(module)) for module in modules],
        "decimals": decimal.getcontext().prec,
    }


KNOWN_HOOKS = list(sys.meta_path)

VANDALISM = {
    "ignores SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "handles SIGINT": "signal.signal(signal.SIGINT, lambda *_: None)",
    "blocks signals": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "blocks signals that are due": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); signal.alarm(600)",
    "sets an alarm": "signal.alarm(600)",
    "sets a timer": "signal.setitimer(signal.ITIMER_PROF, 600)",
    "lowers the recursion limit": "sys.setrecursionlimit(150)",
    "raises the recursion limit": "sys.setrecursionlimit(10**6)",
    "lowers the switch interval": "sys.setswitchinterval(10)",
    "lets numbers be long": "sys.set_int_max_str_digits(0)",
    "replaces threading.excepthook": "threading.excepthook = lambda args: os._exit(3)",
    "replaces sys.excepthook": "sys.excepthook = lambda *args: None",
    "replaces sys.unraisablehook": "sys.unraisablehook = lambda *args: None",
    "replaces sys.exit": "sys.exit = os._exit",
    "profiles": "sys.setprofile(lambda *args: None)",
    "profiles threads": "threading.setprofile(lambda *args: None); threading.settrace(lambda *args: None)",
    "traces memory": "import tracemalloc; tracemalloc.start()",
    "disables the collector": "import gc; gc.disable(); gc.set_threshold(7); gc.callbacks.append(print)",
    "disables faulthandler": "import faulthandler; faulthandler.disable()",
    "has faulthandler end the process": "import faulthandler; faulthandler.dump_traceback_later(600, exit=True)",
    "turns warnings into errors": "import warnings; warnings.simplefilter('error'); warnings.showwarning = print",
    "captures warnings": "import logging; logging.captureWarnings(True)",
    "sets a timeout of sockets": "import socket; socket.setdefaulttimeout(0.001)",
    "replaces sockets": "import socket; socket.socket = socket.create_connection = socket.getaddrinfo = None",
    "checks no certificates": "import ssl; ssl._create_default_https_context = ssl._create_unverified_context",
    "sets the locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "sets the umask": "os.umask(0o777)",
    "changes the working directory": "os.chdir('/')",
    "lowers the limit of files": "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(7)[1]))",
    "pins the process": "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "replaces arguments": "sys.argv = ['vandal']",
    "empties arguments": "sys.argv.clear()",
    "replaces the path": "sys.path.insert(0, '/vandal'); sys.path = ['/vandal']",
    "wraps the streams": "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer); sys.stderr = io.TextIOWrapper("
    "sys.stderr.buffer); del sys.stdout, sys.stderr; import gc; gc.collect()",
    "detaches the streams": "sys.stdout.detach(); sys.stderr.detach()",
    "closes the streams": "sys.stdin.close(); sys.stdout.close(); sys.stderr.close()",
    "closes the descriptors": "os.close(0); os.close(1); os.close(2)",
    "removes import hooks": "sys.meta_path[:] = sys.meta_path[:1]",
    "replaces a module": "sys.modules['json'] = sys",
    "removes a module": "del sys.modules['json']",
    "prints requests": "import http.client; http.client.HTTPConnection.debuglevel = 1",
    "installs an opener": "import urllib.request as r; r.install_opener(r.build_opener())",
    "replaces asyncio.run": "import asyncio; asyncio.run = asyncio.Task = None",
    "patches loops": "import asyncio; asyncio.SelectorEventLoop.run_forever = lambda self: None",
    "replaces the policy": "import asyncio.events as e; e._event_loop_policy = e.BaseDefaultEventLoopPolicy()",
    "replaces builtins": "import builtins; builtins.print = builtins.open = None",
    "replaces time.sleep": "import time; time.sleep = None",
    "removes select.epoll": "import select; del select.epoll",
    "calculates with few digits": "import decimal; decimal.getcontext().prec = 2",
    "replaces os.environ": "os.environ = {}",
}


# The other method sets a timer of its own.
@pytest.mark.timeout(60, method="thread")
@pytest.mark.parametrize("vandalism", VANDALISM.values(), ids=VANDALISM.keys())
@pytest.mark.parametrize("outcome", ["loads", "fails"])
def test_loading_leaves_the_process_as_it_was(write_server: WriteServer, vandalism: str, outcome: str) -> None:
    source = f"import os, signal, sys, threading\n{vandalism}\n" + SOUND_SERVER.replace("\n    ", "\n")
    directory = write_server("vandal", source if outcome == "loads" else f"{source}\n1 / 0\n")
    was_enabled = faulthandler.is_enabled()
    before = process_state()
    found = discover([directory])
    after = process_state()
    if was_enabled:
        # The module has switched it off, which pytest's own output depends on.
        faulthandler.enable()
    assert len(found.definitions) == (1 if outcome == "loads" else 0), found.failures
    changed = {part for part in before if before[part] != after[part]}
    assert not changed


@pytest.mark.parametrize("number", ["SIGUSR1", "SIGALRM"])
def test_signal_that_a_module_has_blocked_reaches_the_handler_that_there_was(
    write_server: WriteServer, number: str
) -> None:
    seen: list[int] = []
    before = signal.signal(getattr(signal, number), lambda got, _: seen.append(got))
    try:
        source = f"import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.{number}])\n"
        source += f"signal.signal(signal.{number}, signal.SIG_IGN)\nos.kill(os.getpid(), signal.{number})\n"
        discover([write_server("vandal", source)])
        os.kill(os.getpid(), getattr(signal, number))
    finally:
        signal.signal(getattr(signal, number), before)
    assert seen


TIMER = "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.1)\ntime.sleep(0.4)\n"
BLOCKED = f"import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n{TIMER}"
CPU_TIME = (
    "import resource as r, time\nr.setrlimit(r.RLIMIT_CPU, (1, r.getrlimit(r.RLIMIT_CPU)[1]))\n"
    "end = time.process_time() + 1.5\nwhile time.process_time() < end:\n    pass\n"
)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("source", "limit_seconds"), [(TIMER, 0), (TIMER, 30), (BLOCKED, 0), (CPU_TIME, 30)])
def test_signal_that_is_due_while_a_module_is_loaded_does_not_end_the_process(
    write_server: WriteServer, source: str, limit_seconds: int
) -> None:
    directory = write_server("vandal", source + SOUND_SERVER.replace("\n    ", "\n"))
    program = (
        "import time, django; django.setup()\n"
        "from pathlib import Path; from gateway.catalog.discovery import discover\n"
        f"found = discover([Path({str(directory)!r})], {limit_seconds}); time.sleep(0.2)\n"
        "print([failure.reason for failure in found.failures] or 'loaded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment(directory.parent / "data"), "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


def test_random_numbers_are_not_those_that_a_module_has_seeded(write_server: WriteServer) -> None:
    discover([write_server("vandal", "import random\nrandom.seed(42)\n")])
    assert random.random() != random.Random(42).random()


def test_what_a_module_has_changed_is_in_the_log(write_server: WriteServer, caplog: pytest.LogCaptureFixture) -> None:
    source = "import gc, os, sys\nos.chdir('/')\ngc.disable()\nsys.path.append('/x')\n"
    with caplog.at_level(logging.INFO, logger="gateway"):
        discover([write_server("vandal", source)])
    lines = [record.getMessage() for record in caplog.records if "undone" in record.getMessage()]
    changes = "the garbage collector, the working directory"
    assert lines == [f"Server vandal has changed while it was loaded, and this was undone: {changes}"]


def test_stream_that_a_module_keeps_goes_on_working(
    write_server: WriteServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "import logging, sys\nHANDLER = logging.StreamHandler(sys.stdout)\nOUT = sys.stdout\n"
    (found,) = discover([write_server("keeping", source + SOUND_SERVER.replace("\n    ", "\n"))]).definitions
    found.style.server.__globals__["HANDLER"].emit(logging.makeLogRecord({"msg": "said later"}))
    print("printed later", file=found.style.server.__globals__["OUT"])
    captured = capsys.readouterr()
    assert "said later" in captured.err
    assert "printed later" in captured.err


@pytest.mark.parametrize("runs_in_a_loop", [False, True])
def test_module_may_use_event_loops_while_it_is_loaded(write_server: WriteServer, runs_in_a_loop: bool) -> None:
    source = """
        import asyncio

        async def ask():
            await asyncio.sleep(0)
            return asyncio.current_task() is not None

        LOOP = asyncio.new_event_loop()
        ANSWERS = [asyncio.run(ask()), LOOP.run_until_complete(ask())]
        LOOP.close()
    """
    directory = write_server("one", textwrap.dedent(source) + textwrap.dedent(SOUND_SERVER))
    write_server("two", "import asyncio\nLOOP = asyncio.get_event_loop()" + SOUND_SERVER.replace("\n    ", "\n"))

    async def load() -> Discovery:
        found = discover([directory])
        assert asyncio.current_task() is not None
        await asyncio.sleep(0)
        return found

    found = asyncio.run(load()) if runs_in_a_loop else discover([directory])
    assert [definition.name for definition in found.definitions] == ["one", "two"], found.failures
    assert found.definitions[0].style.server.__globals__["ANSWERS"] == [True, True]


def test_context_variable_that_a_module_sets_is_not_set_for_the_host(write_server: WriteServer) -> None:
    # In a module of everybody, as a library's is.
    source = "import contextvars, string\nstring.variable = contextvars.ContextVar('variable', default=1)\n"
    discover([write_server("setting", source + "string.variable.set(2)\n")])
    variable = vars(string).pop("variable")
    assert variable.get() == 1


def test_event_loop_of_a_load_is_closed_with_it_unless_the_module_keeps_it(write_server: WriteServer) -> None:
    gc.collect()
    gc.disable()
    try:
        descriptors = len(os.listdir("/proc/self/fd"))
        directory = write_server(
            "asking", "import asyncio\nasyncio.get_event_loop()" + SOUND_SERVER.replace("\n    ", "\n")
        )
        discover([directory])
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        gc.enable()
    source = "import asyncio\nLOOP = asyncio.get_event_loop()" + SOUND_SERVER.replace("\n    ", "\n")
    (found,) = discover([write_server("keeping", source, directory="others")]).definitions
    loop = found.style.server.__globals__["LOOP"]
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    loop.close()
