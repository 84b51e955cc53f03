"""Tells whether a module was written for version 1 of the SDK, before its factory is called.

Modules of both versions run on the same classes, so nothing depends on the answer but one thing: whether the factory
runs on the home loop, where the handlers of version 1 run, or in the lane, where those of version 2 do. That matters to
factories that make something bound to a loop, for example an `aiohttp.ClientSession`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any, Final

from gateway.compat.fastmcp.server import FastMCP

DECORATORS: Final = frozenset(
    {
        "call_tool",
        "completion",
        "get_prompt",
        "list_prompts",
        "list_resource_templates",
        "list_resources",
        "list_tools",
        "progress_notification",
        "read_resource",
        "set_logging_level",
        "subscribe_resource",
        "unsubscribe_resource",
    }
)
"""Methods of version 1's `Server`."""

_REGISTRIES: Final = frozenset({"notification_handlers", "request_handlers"})

_METHODS_OF_VERSION_2: Final = frozenset({"add_notification_handler", "add_request_handler"})

_ARGUMENTS_OF_VERSION_2: Final = frozenset(f"on_{name}" for name in DECORATORS)


def is_written_for_version_1(module: ModuleType) -> bool:
    """Whether the module has imported version 1's `FastMCP`, or its own functions use version 1's decorators or
    registries and nothing that only version 2 has.

    A module that makes its server in another module, or uses both versions, counts as version 2.
    """
    if any(value is FastMCP for value in vars(module).values()):
        return True
    used: set[str] = set()
    for code in _code_of(module):
        used.update(code.co_names)
        # Names of keyword arguments are a tuple among the constants.
        used.update(name for names in code.co_consts if isinstance(names, tuple) for name in names if _is_text(name))
    return bool(used & (DECORATORS | _REGISTRIES)) and not used & (_METHODS_OF_VERSION_2 | _ARGUMENTS_OF_VERSION_2)


def _code_of(module: ModuleType) -> Iterator[CodeType]:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        functions = [value] if inspect.isfunction(value) else []
        if inspect.isclass(value):
            functions += [method for method in vars(value).values() if inspect.isfunction(method)]
        for function in functions:
            yield from _with_inner(inspect.unwrap(function).__code__)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
