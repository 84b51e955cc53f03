"""Environment variables of servers: each gets what its own `.env` says, whatever another server's says.

A process has one environment. A variable that one server sets while it is loaded, as `load_dotenv()` does, would keep
another server's `.env` from setting it: that server would use the first one's key. So the thread that loads a server
does not see what servers have added to the environment before. Later the server's own modules still find their own
values in `os.environ` and `os.getenv`, in any thread.

Libraries that run later, and child processes, read the environment of the process. A variable that a server adds is
added there too, and a value that it extends (`PATH`) is extended. Any other change is the server's alone: the host's
variables stay as they are, and of two servers that add the same variable the first one's value stays. The log says so.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Self

logger = logging.getLogger(__name__)

_OF_THE_PROCESS: Final = frozenset({"TZ"})
"""Variables that change what the host itself does."""

_lock: Final = threading.Lock()
"""Held while `os.environ` changes its class."""


class ServerEnvironment(MutableMapping[str, str]):
    """`os.environ` as the modules of one server see it. Used in any thread."""

    def __init__(self, server_name: str) -> None:
        self.server_name = server_name
        self.added: set[str] = set()
        """Variables of the process that this server, or an earlier load of it, has added."""
        self._own: dict[str, str | None] = {}
        """Values that this server has set; None for variables that it has removed."""
        self._hidden: frozenset[str] = frozenset()
        """Variables of the process that are not seen: while the server is loaded, those that servers have added."""

    def __getitem__(self, name: str) -> str:
        value = self._own[name] if name in self._own else None if name in self._hidden else _process_value(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: str) -> None:
        before = _process_value(name)
        if name not in _OF_THE_PROCESS and (before is None or name in self.added or before in value):
            _set_process_value(name, value)
            if before is None:
                self.added.add(name)
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        self[name]  # raises KeyError if there is none
        if name in self.added:
            self.added.discard(name)
            _set_process_value(name, None)
        self._own[name] = None

    def __iter__(self) -> Iterator[str]:
        process = [name for name in _process_names() if name not in self._own and name not in self._hidden]
        return iter([*process, *(name for name, value in self._own.items() if value is not None)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"environ({dict(self)!r})"

    def __or__(self, other: Mapping[str, str]) -> dict[str, str]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, str]) -> dict[str, str]:
        return {**other, **self}

    def __ior__(self, other: Mapping[str, str]) -> Self:
        self.update(other)
        return self

    def copy(self) -> dict[str, str]:
        """Return the variables as a dictionary."""
        return dict(self)

    def os_module(self) -> ModuleType:
        """Return the module `os` with this environment. All else in it is the same."""
        view = ModuleType("os", os.__doc__)
        view.__dict__.update(vars(os))
        view.__dict__.update(environ=self, getenv=self.get)
        return view

    @contextmanager
    def loading(self, others: Iterable["ServerEnvironment"]) -> Iterator[None]:
        """Let this thread see this environment as `os.environ` while the block loads the server.

        `others`: the environments of other servers, and of earlier loads of this one. If the block raises, what it has
        added is removed.
        """
        others = list(others)
        before = {name: _process_value(name) for name in _process_names()}
        for other in others:
            if other.server_name == self.server_name:
                self.added |= other.added
        self._hidden = frozenset(name for other in others for name in other.added)
        try:
            with _seen_by_this_thread(self):
                yield
        except BaseException:
            for name in self._own:
                _set_process_value(name, before.get(name))
            raise
        finally:
            self._hidden = frozenset()
        self._report_conflicts(others)

    def _report_conflicts(self, others: Iterable["ServerEnvironment"]) -> None:
        for name, value in self._own.items():
            for other in others:
                if name in other.added and name not in self.added and value != _process_value(name):
                    logger.warning(
                        "Servers %s and %s set %s to different values. Each gets its own in os.environ; libraries "
                        "that read it later, and child processes, get the value of %s",
                        other.server_name,
                        self.server_name,
                        name,
                        other.server_name,
                    )


class _EnvironOfThreads(os._Environ[str]):
    """`os.environ` while servers are loaded: a thread that loads one sees the server's environment."""

    loads: dict[int, ServerEnvironment]

    def _of_this_thread(self) -> ServerEnvironment | None:
        return self.loads.get(threading.get_ident())

    def __getitem__(self, name: str) -> str:
        own = self._of_this_thread()
        return super().__getitem__(name) if own is None else own[name]

    def __setitem__(self, name: str, value: str) -> None:
        own = self._of_this_thread()
        if own is None:
            super().__setitem__(name, value)
        else:
            own[name] = value

    def __delitem__(self, name: str) -> None:
        own = self._of_this_thread()
        if own is None:
            super().__delitem__(name)
        else:
            del own[name]

    def __iter__(self) -> Iterator[str]:
        own = self._of_this_thread()
        return super().__iter__() if own is None else iter(own)

    def __len__(self) -> int:
        own = self._of_this_thread()
        return super().__len__() if own is None else len(own)


@contextmanager
def _seen_by_this_thread(environment: ServerEnvironment) -> Iterator[None]:
    # Others hold the object `os.environ`, so it has to be this object that gives other answers.
    environ: Any = os.environ
    thread = threading.get_ident()
    with _lock:
        if not isinstance(environ, _EnvironOfThreads):
            environ.loads = {}
            environ.__class__ = _EnvironOfThreads
        environ.loads[thread] = environment
    try:
        yield
    finally:
        with _lock:
            del environ.loads[thread]
            if not environ.loads:
                environ.__class__ = os._Environ


def _process_names() -> list[str]:
    return list(os._Environ.__iter__(os.environ))


def _process_value(name: str) -> str | None:
    try:
        return os._Environ.__getitem__(os.environ, name)
    except KeyError:
        return None


def _set_process_value(name: str, value: str | None) -> None:
    if value is not None:
        os._Environ.__setitem__(os.environ, name, value)
    elif _process_value(name) is not None:
        os._Environ.__delitem__(os.environ, name)
