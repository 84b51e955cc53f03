"""A process from which `warm_python` forks programs: it has imported what every host imports.

Usage: warm_server.py DESCRIPTOR, one end of a socket pair. It imports what needs no settings, and starts no thread and
no event loop, so that a program starts as in a new interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

PRELOADED: Final = (
    "mcp.server.mcpserver",
    "mcp.client.client",
    "django.contrib.auth.hashers",
    "django.core.handlers.asgi",
    "django.core.management",
    "django.core.serializers.json",
    "django.db.migrations.executor",
    "django.db.models",
    "django.forms",
    "django.template.loader",
    "django.test.signals",
    "django.contrib.staticfiles.finders",
    "django.contrib.sessions.backends.base",
    "environ",
    "prometheus_client",
    "limits.storage",
    "limits.strategies",
    "uvicorn.main",
    "uvloop",
    "autobahn.websocket.protocol",
    "twisted.internet.endpoints",
    "twisted.internet.posixbase",
    "twisted.web.http",
    "watchfiles",
    "whitenoise.middleware",
    "gateway.access.authenticator",
    "gateway.access.log_redaction",
    "gateway.catalog.discovery",
    "gateway.compat.fastmcp.server",
    "gateway.console.client_setups",
    "gateway.host.reloading",
    "gateway.instances.instances",
    "gateway.private_sqlite.base",
    "gateway.serving",
    "gateway.transports.sse",
    "gateway.transports.stateless",
    "gateway.transports.streamable_http",
    "gateway.upstreams.supply",
)
"""Must not read settings or the environment, and must not start anything, when they are imported."""

ROOT: Final = Path(__file__).parents[2]

MESSAGE_BYTES: Final = 1024 * 1024


def main(descriptor: int) -> None:
    """Start programs until the other end is closed."""
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    sys.path.remove(str(ROOT))
    gc.collect()
    # Stays so in the programs: a collection that looks at all that was imported would cost each a tenth of a second.
    gc.freeze()
    # Ctrl-C ends the tests, which end the programs.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    while message := channel.recv(MESSAGE_BYTES):
        request = json.loads(message)
        if "ended" in request:
            # The process has ended already: its parent may ask for its status.
            _, status = os.waitpid(request["ended"], 0)
            channel.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
        elif (pid := os.fork()) != 0:
            channel.send(json.dumps(pid).encode())
        else:
            channel.close()
            signal.signal(signal.SIGINT, on_interrupt)
            # What runs the tests may ignore it, as `nohup` does.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            end(status_of(request))


def run(words: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Become the program `python WORDS…`. `outputs`: the files of its standard output and standard error."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), target)
    os.closerange(3, 256)
    is_unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: Any = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        stream.reconfigure(write_through=is_unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], folder
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def status_of(request: dict[str, Any]) -> int:
    """Run a program to its end, and return the status with which Python would exit.

    Exceptions are raised, so that Python itself ends the program.
    """
    try:
        run(**request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    return 0


def end(status: int) -> NoReturn:
    """End this process as Python does, but without freeing its objects one by one.

    They are shared with the process that this one was forked from, and to free one copies its page. That costs as much
    as a short program itself, and on a busy machine more than the second in which a host promises to end.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        status = 120
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main(int(sys.argv[1]))
