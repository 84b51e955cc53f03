"""The last log lines of each server, for operators: a logging handler that keeps them in memory.

Which server a record belongs to is told by, in this order: the file that logged it, a server's name among the arguments
of the host's own records (as for what child processes print), and the lane's thread. Records come here redacted
(`access.log_redaction`). A record that belongs to no server is not kept.
"""

import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.catalog.registry import Registry

MAX_LINES: Final = 500
"""How many lines of each server are kept."""

MAX_LINE_LENGTH: Final = 2000
"""How many characters of a line are kept, its traceback included."""

LANE: Final = "lane-"
"""How the names of the lanes' threads begin."""

HOST_LOGGERS: Final = "gateway."
"""How the names of the host's own loggers begin."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, with its number: the newest has the highest."""

    number: int
    at: float
    """Seconds since the epoch."""
    level: str
    logger: str
    text: str


class ServerLog(logging.Handler):
    """Keeps the last lines of each server. Any thread may use it."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry
        self._lines: dict[str, deque[LogLine]] = {}
        self._count = 0
        self._folders: Mapping[str, str] = {}
        """Where the modules of servers are -> the server's name."""
        self._prefixes: tuple[str, ...] = ()
        self._names: frozenset[str] = frozenset()
        self._revision = -1

    def install(self) -> None:
        """Receive the records of the process."""
        logging.getLogger().addHandler(self)

    def uninstall(self) -> None:
        """Receive none any more."""
        logging.getLogger().removeHandler(self)

    def lines(self, server_name: str, after: int = 0) -> list[LogLine]:
        """The lines of one server whose number is higher than `after`, the oldest first."""
        self.acquire()
        try:
            return [line for line in self._lines.get(server_name, ()) if line.number > after]
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record if it is about a server. `handle` holds the lock meanwhile."""
        try:
            server_name = self._server_of(record)
            if server_name is None:
                return
            text = record.getMessage()
            if record.exc_text:
                text = f"{text}\n{record.exc_text}"
            self._count += 1
            line = LogLine(self._count, record.created, record.levelname, record.name, text[:MAX_LINE_LENGTH])
            self._lines.setdefault(server_name, deque(maxlen=MAX_LINES)).append(line)
        except Exception:  # as every handler does: logging must not end what it tells of
            self.handleError(record)

    def _server_of(self, record: logging.LogRecord) -> str | None:
        if self._revision != self._registry.revision:
            self._revision = self._registry.revision
            self._folders = {f"{found.folder}{os.sep}": found.name for found in self._registry}
            self._folders |= {f"{failure.folder}{os.sep}": failure.name for failure in self._registry.failures}
            self._prefixes, self._names = tuple(self._folders), frozenset(self._folders.values())
        if record.pathname.startswith(self._prefixes):
            return next(name for folder, name in self._folders.items() if record.pathname.startswith(folder))
        if record.name.startswith(HOST_LOGGERS) and isinstance(record.args, tuple):
            for argument in record.args:
                if isinstance(argument, str) and argument in self._names:
                    return argument
        thread = record.threadName or ""
        return thread.removeprefix(LANE) if thread.startswith(LANE) else None
