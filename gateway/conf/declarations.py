"""How a setting is declared: a `Setting` is at once its name, its kind, its default, its text for operators, and the
typed attribute that the code reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from gateway.conf.kinds import Kind

T = TypeVar("T")

PREFIX = "GUMCP_"


@dataclass(frozen=True)
class Section:
    """A heading between declarations, for `.env.example` and the documentation."""

    title: str
    text: str = ""


@dataclass(frozen=True)
class Computed(Generic[T]):
    """A default that depends on other settings."""

    text: str
    """What it is, for the documentation."""
    value: Callable[[Any], T]
    """Gets the `GatewaySettings` with every setting that does not have such a default."""


class Setting(Generic[T]):
    """One setting. Reading the attribute gives the value from Django's settings, or from another source."""

    name: str
    """The environment variable, and the name in Django's settings."""

    def __init__(
        self,
        kind: Kind[T],
        default: str | Computed[T],
        text: str,
        *,
        name: str | None = None,
        is_secret: bool = False,
        example: str | None = None,
    ) -> None:
        """`default` is written as in the environment. `text` is for operators: what it does, and where it ends.

        `name`: the variable, where it is not the attribute's name in capitals. `is_secret`: no message shows its value.
        `example`: stands in `.env.example` in place of the default.
        """
        self.kind = kind
        self.default = default
        self.text = text
        self.is_secret = is_secret
        self.example = example
        self._name = name

    def __set_name__(self, owner: type, attribute: str) -> None:
        """Derive the variable from the attribute."""
        self.name = self._name or PREFIX + attribute.upper()

    @overload
    def __get__(self, instance: None, owner: type) -> "Setting[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        """Return the value, or the declaration itself where the class is asked."""
        return self if instance is None else getattr(instance.source, self.name)
