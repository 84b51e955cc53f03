"""What a session asks for, again and again, and what the right answer is.

A further row of the benchmark (another server, a tool that does more) is a further ``Workload`` in ``WORKLOADS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """One tool of one server. Every call differs from every other, so that an answer to another call is noticed."""

    name: str
    server_name: str
    tool: str
    arguments: Callable[[int, int], Arguments]
    """``(session number, call number) -> arguments``"""
    answer: Callable[[Arguments], str]
    """The whole text that the result of these arguments must have."""


STORE: Final = Workload(
    name="store",
    server_name="simple-tools-server",
    tool="store-data",
    arguments=lambda session, call: {"key": f"key-{session}", "value": f"{session}.{call}"},
    answer=lambda arguments: f"Stored '{arguments['key']}' with value: {arguments['value']}",
)


def _echo(name: str) -> Workload:
    return Workload(
        name=name,
        server_name=name,
        tool="echo",
        arguments=lambda session, call: {"text": f"{session}.{call}"},
        answer=lambda arguments: str(arguments["text"]),
    )


ON_VERSION_1: Final = _echo("echo-version-1")
ON_VERSION_2: Final = _echo("echo-version-2")
"""The same tool for either version of the SDK; compared by `off_loop`."""

IN_HOST: Final = _echo("echo-in-host")
IN_CHILD: Final = _echo("echo-in-child")
"""The same folder in the host's process and in one of its own; compared by `child`."""

WORKLOADS: Final = {workload.name: workload for workload in (STORE, ON_VERSION_1, ON_VERSION_2, IN_HOST, IN_CHILD)}
