"""The form field of a key's scope: every server, or the servers that are ticked, each with every tool or some.

An oversight must not widen a key: where two marks contradict each other, the form is refused.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError

from gateway.access.models import read_scope

EVERYTHING: Final = "every"
SOME: Final = "some"

Scope = dict[str, list[str] | None]
"""As it is kept in the row: server name -> tool names, None for every tool."""


@dataclass(slots=True)
class ServerChoice:
    """What is marked at one server."""

    is_ticked: bool = False
    reach: str = EVERYTHING
    tools: set[str] = field(default_factory=set)
    other_tools: str = ""
    """Names typed in, separated by commas: tools that are not known yet."""


@dataclass(slots=True)
class ScopeChoice:
    """What is marked in the whole form."""

    reach: str
    servers: dict[str, ServerChoice] = field(default_factory=dict)

    @classmethod
    def of_scope(cls, scope: Any) -> "ScopeChoice":
        """The marks that stand for a row's scope. One that is unusable has none: its reach has to be chosen anew."""
        try:
            allowed = read_scope(scope)
        except ValidationError:
            return cls("")
        if allowed is None:
            return cls(EVERYTHING)
        return cls(
            SOME,
            {
                name: ServerChoice(True) if tools is None else ServerChoice(True, SOME, set(tools))
                for name, tools in allowed.items()
            },
        )

    def scope(self) -> Scope | None:
        """The scope that the ticked boxes describe; None means all servers.

        Raises:
            ValidationError: the marks contradict each other.
        """
        if self.reach not in (EVERYTHING, SOME):
            raise ValidationError("Choose every server, or only those that are ticked.")
        scope: Scope = {}
        for name, choice in self.servers.items():
            tools = choice.tools | {tool.strip() for tool in choice.other_tools.split(",") if tool.strip()}
            if choice.reach not in (EVERYTHING, SOME):
                raise ValidationError(f"Choose every tool of {name}, or only some.")
            if tools and not choice.is_ticked:
                raise ValidationError(f"You chose tools of {name}, but did not tick {name}.")
            if tools and choice.reach != SOME:
                raise ValidationError(f"You chose tools of {name}, and also every tool of {name}. Choose one.")
            if choice.is_ticked:
                scope[name] = sorted(tools) if choice.reach == SOME else None
        if self.reach == EVERYTHING:
            if scope:
                raise ValidationError("You ticked servers, and also chose every server. Choose one.")
            return None
        if not scope:
            raise ValidationError("Tick at least one server, or choose every server.")
        return scope


class ScopeWidget(forms.Widget):
    """Shows the known servers with their known tools, and reads what is marked."""

    template_name = "console/scope.html"

    def __init__(self, attrs: Any = None) -> None:
        super().__init__(attrs)
        self.known_tools: Mapping[str, Iterable[str]] = {}
        """Server name -> its tools, as far as they are known."""

    class Media:
        js = ["console/scope.js"]
        css = {"all": ["console/console.css"]}

    def id_for_label(self, id_: str) -> str:
        """No id: the label belongs to a group of fields."""
        return ""

    def get_context(self, name: str, value: Any, attrs: Any) -> dict[str, Any]:
        """What the template shows: `value` is a scope, or what was marked."""
        context = super().get_context(name, value, attrs)
        choice = value if isinstance(value, ScopeChoice) else ScopeChoice.of_scope(value)
        servers = []
        for server in sorted({*self.known_tools, *choice.servers}):
            marked = choice.servers.get(server, ServerChoice())
            tools = sorted({*self.known_tools.get(server, ()), *marked.tools})
            servers.append(
                {
                    "name": server,
                    "choice": marked,
                    "tools": [(tool, tool in marked.tools, json.dumps([server, tool])) for tool in tools],
                }
            )
        context.update(reach=choice.reach, servers=servers)
        return context

    def value_from_datadict(self, data: Any, files: Any, name: str) -> ScopeChoice:
        """Read what is marked. Servers are named in the form: their order may change while it is open."""
        choice = ScopeChoice(data.get(name, ""))
        for key in data:
            field_name, separator, server = key.partition(":")
            if separator and field_name == f"{name}_reach":
                choice.servers.setdefault(server, ServerChoice()).reach = data[key]
            elif separator and field_name == f"{name}_other":
                choice.servers.setdefault(server, ServerChoice()).other_tools = data[key]
        for server in data.getlist(f"{name}_servers"):
            choice.servers.setdefault(server, ServerChoice()).is_ticked = True
        for pair in data.getlist(f"{name}_tools"):
            server, tool = _read_pair(pair)
            choice.servers.setdefault(server, ServerChoice()).tools.add(tool)
        return choice

    def value_omitted_from_data(self, data: Any, files: Any, name: str) -> bool:
        """A form without any mark is refused, not taken for the default."""
        return False


class ScopeField(forms.Field):
    """A key's scope as the row keeps it."""

    widget = ScopeWidget

    def clean(self, value: ScopeChoice) -> Scope | None:
        """The scope that is marked. Raises `ValidationError`."""
        return value.scope()

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Whether another scope is marked than the row has."""
        try:
            return bool(read_scope(data.scope()) != read_scope(initial))
        except ValidationError:
            return True


def _read_pair(text: str) -> tuple[str, str]:
    """The server and the tool of a mark; no server if it is not one. Half a surrogate pair could not be shown again."""
    try:
        server, tool = json.loads(text)
        f"{server}{tool}".encode()
    except (ValueError, TypeError, RecursionError):
        return "", text
    return str(server), str(tool)
