"""Keeps Python's own modules: attributes that were replaced, modules that were replaced, import hooks."""

import asyncio
import asyncio.events
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

_MODULES: Final = (
    "_thread",
    "asyncio",
    "asyncio.events",
    "asyncio.futures",
    "asyncio.runners",
    "asyncio.tasks",
    "builtins",
    "http.client",
    "logging",
    "os",
    "queue",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "threading",
    "time",
    "urllib.request",
)
"""Modules that are patched in the field: by gevent, nest_asyncio and PySocks, or by hand so that certificates are not
checked (`ssl._create_default_https_context`)."""

_CLASSES: Final = (
    ("asyncio.base_events", "BaseEventLoop"),
    ("asyncio.events", "BaseDefaultEventLoopPolicy"),
    ("asyncio.selector_events", "BaseSelectorEventLoop"),
    ("asyncio.unix_events", "_UnixDefaultEventLoopPolicy"),
    ("asyncio.unix_events", "_UnixSelectorEventLoop"),
    # With debuglevel it prints the headers of every request, keys included.
    ("http.client", "HTTPConnection"),
    ("http.client", "HTTPSConnection"),
    ("threading", "Thread"),
)

_CHANGING: Final = frozenset({"argv", "path", "stdin", "stdout", "stderr"})
"""Attributes of `sys` that `interpreter` and `streams` keep."""

_SERVER_PREFIX: Final = "gumcp_"

_MISSING: Final = object()


def keep_attributes() -> Callable[[], bool]:
    """Keep functions, classes and hooks of Python's own modules: `sys.excepthook`, `socket.socket`, `asyncio.run` …"""
    _event_loop_policy()
    modules = [sys.modules[name] for name in _MODULES if name in sys.modules]
    classes = [
        found
        for module, name in _CLASSES
        if module in sys.modules and (found := getattr(sys.modules[module], name, None)) is not None
    ]
    kept: list[tuple[Any, dict[str, Any]]] = [
        *(
            (module, {name: value for name, value in vars(module).items() if name not in _CHANGING})
            for module in modules
        ),
        *((found, dict(vars(found))) for found in classes),
    ]

    def restore() -> bool:
        changed = [(holder, attributes) for holder, attributes in kept if not _has(holder, attributes)]
        for holder, attributes in changed:
            now = dict(vars(holder))
            for name, value in attributes.items():
                if now.get(name, _MISSING) is not value:
                    setattr(holder, name, value)
            if isinstance(holder, type):
                # An attribute that was added to a class hides that of its base.
                for name in now.keys() - attributes.keys():
                    delattr(holder, name)
        return bool(changed)

    return restore


def keep_modules() -> Callable[[], bool]:
    """Keep modules that were imported already from being replaced or removed, as in `sys.modules["json"] = ujson`."""
    kept = dict(sys.modules)
    # Other threads may be importing them, and remove them if that fails.
    unfinished = {name for name, module in kept.items() if _is_being_imported(module)}

    def restore() -> bool:
        changed = {
            name: module
            for name, module in kept.items()
            if sys.modules.get(name) is not module and name not in unfinished and not name.startswith(_SERVER_PREFIX)
        }
        sys.modules.update(changed)
        return bool(changed)

    return restore


def keep_import_hooks() -> Callable[[], bool]:
    """Keep import hooks from being removed. New ones stay: libraries bring them along."""
    kept: list[tuple[list[Any], list[Any]]] = [(hooks, list(hooks)) for hooks in (sys.meta_path, sys.path_hooks)]

    def restore() -> bool:
        is_changed = False
        for hooks, before in kept:
            if any(hook not in hooks for hook in before):
                is_changed = True
                hooks[:] = [*(hook for hook in hooks if hook not in before), *before]
        return is_changed

    return restore


def _has(holder: Any, attributes: dict[str, Any]) -> bool:
    now = vars(holder)
    return all(now.get(name, _MISSING) is value for name, value in attributes.items()) and (
        not isinstance(holder, type) or len(now) == len(attributes)
    )


def _is_being_imported(module: ModuleType) -> bool:
    try:
        return bool(module.__spec__._initializing)  # type: ignore[union-attr]
    except AttributeError:
        return False


def _event_loop_policy() -> object:
    """Have the policy made now. It would be made with the first event loop, and then look like a change."""
    # The public function is deprecated since Python 3.14.
    get = getattr(asyncio.events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
    return get()
