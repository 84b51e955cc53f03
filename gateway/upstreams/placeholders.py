"""Placeholders in manifests: `${user_id}`, `${api_key}` and `${env:NAME}`.

A text is parsed once, when its manifest is loaded, and rendered for each caller. It never reaches a shell.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from gateway.exceptions import InstanceUnavailable

KNOWN: Final = ("user_id", "api_key")
"""The placeholders that differ from caller to caller."""

_PLACEHOLDER: Final = re.compile(r"\$\{([^}]*)\}")
_NOT_A_FOLDER: Final = "The user id or key stands for a folder, so it cannot have slashes and cannot be dots."
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")


class PlaceholderError(ValueError):
    """A text has a placeholder that nothing is known for. The message is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a text is rendered for."""

    user_id: str
    api_key: str | None


@dataclass(frozen=True, slots=True)
class Text:
    """A text with placeholders: literal parts, and between them the names of what is filled in."""

    source: str
    """As it stands in the manifest. Safe to show: it has names in place of values."""
    parts: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...]
    from_environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The names and values of the variables that `${env:NAME}` stood for."""

    @property
    def depends_on_caller(self) -> bool:
        """Whether two callers may get different texts."""
        return bool(self.names)

    def render(self, caller: Caller, encode: Callable[[str], str] = str) -> str:
        """The text for one caller. `encode` is applied to what is filled in.

        Raises:
            InstanceUnavailable: the caller has no key and the text needs one, or a value has a line break.
        """
        filled = [self.parts[0]]
        for name, part in zip(self.names, self.parts[1:], strict=True):
            value = caller.user_id if name == "user_id" else caller.api_key
            if value is None:
                raise InstanceUnavailable("This server needs an API key. Connect with {user_id}:{api_key}.")
            if _FORBIDDEN.search(value):
                raise InstanceUnavailable("The user id or key has a line break, which this server cannot take.")
            filled += [encode(value), part]
        return "".join(filled)

    def render_local(self, caller: Caller) -> str:
        """The text for a process of this machine. What follows a slash may be a path, so it stays one name of it.

        Raises:
            InstanceUnavailable: as `render`, or a value would lead to another folder.
        """
        for name, part in zip(self.names, self.parts, strict=False):
            value = caller.user_id if name == "user_id" else caller.api_key
            if part.endswith("/") and value is not None:
                require_name(value)
        return self.render(caller)

    def render_argument(self, caller: Caller) -> str:
        """The text as one argument of a command.

        Raises:
            InstanceUnavailable: as `render_local`, or the caller's value would make the argument an option.
        """
        text = self.render_local(caller)
        if self.names and not self.parts[0] and text.startswith("-"):
            raise InstanceUnavailable("The user id or key begins with a dash, which this server cannot take.")
        return text


def parse_text(source: str, environment: Mapping[str, str]) -> Text:
    """Parse a text. `${env:NAME}` is filled in at once, from `environment`.

    Raises:
        PlaceholderError: a placeholder is unknown, its variable is not set, or the text has a line break.
    """
    parts, names, from_environment = [""], [], []
    position = 0
    for match in _PLACEHOLDER.finditer(source):
        parts[-1] += source[position : match.start()]
        position = match.end()
        name = match[1]
        if name in KNOWN:
            names.append(name)
            parts.append("")
        elif name.startswith("env:"):
            variable = name.removeprefix("env:")
            if variable not in environment:
                raise PlaceholderError(f"${{{name}}}: the environment variable {variable} is not set.")
            parts[-1] += environment[variable]
            from_environment.append((variable, environment[variable]))
        else:
            known = "${user_id}, ${api_key} and ${env:NAME}"
            raise PlaceholderError(f"${{{name}}} is not a placeholder. Known are {known}.")
    parts[-1] += source[position:]
    if any(_FORBIDDEN.search(part) for part in parts):
        raise PlaceholderError("A line break or NUL is not allowed here.")
    return Text(source, tuple(parts), tuple(names), tuple(from_environment))


def render_url(text: Text, caller: Caller) -> str:
    """The text as a URL, with percent-encoded values.

    Raises:
        InstanceUnavailable: as `render`, or the values would lead to another path of the same server.
    """
    url = text.render(caller, quote_segment)
    # HTTP clients resolve dots before they send the path, so `/users/../admin` would be `/admin`.
    if text.names and not {".", ".."}.isdisjoint(url.partition("?")[0].split("/")):
        raise InstanceUnavailable(_NOT_A_FOLDER)
    return url


def render_folder(text: Text, caller: Caller) -> str:
    """The text as a folder's path.

    Raises:
        InstanceUnavailable: as `render`, or the values would lead to another folder.
    """
    filled = text.render(caller, require_name)
    if text.names and not {".", ".."}.isdisjoint(filled.removeprefix(text.parts[0].rpartition("/")[0]).split("/")):
        raise InstanceUnavailable(_NOT_A_FOLDER)
    return filled


def require_name(value: str) -> str:
    """Return `value` if it can be the name of a file or folder. Raises `InstanceUnavailable`."""
    if "/" in value or "\\" in value or value in (".", ".."):
        raise InstanceUnavailable(_NOT_A_FOLDER)
    return value


def quote_segment(value: str) -> str:
    """Percent-encode a value that stands in a URL's path or query."""
    return quote(value, safe="")
