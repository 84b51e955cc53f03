"""The outcome of loading a server folder: a definition that can be served, or a failure with its reason."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gateway.catalog.styles import Style
from gateway.upstreams.link_state import LinkState


class Source(Protocol):
    """What serves a server that is not Python code in this process."""

    @property
    def kind(self) -> str:
        """`command`, `process` or `remote`."""
        ...

    @property
    def summary(self) -> str:
        """Its command line or URL, without secrets."""
        ...

    @property
    def manifest(self) -> object:
        """What was loaded. Equal manifests need no reload."""
        ...

    def condition(self) -> str:
        """Its state in a few words. Any thread."""
        ...

    def warning(self) -> str:
        """Why it cannot be started, as far as is known before its first use: a part of a sentence, or nothing."""
        ...

    def states(self) -> list[LinkState]:
        """Its child processes or connections. Any thread."""
        ...


@dataclass(frozen=True, slots=True)
class ServerDefinition:
    """A server folder that was loaded."""

    name: str
    """The folder's name, and the first segment of the server's URLs."""
    folder: Path
    style: Style
    """How its module makes server objects."""
    load_seconds: float
    source: Source | None = None
    """The links of a server that is a command or a URL; None for Python code in this process."""
    call_timeout_seconds: float | None = None
    """How long its manifest lets a call take without progress, 0 for no limit; None where it does not say."""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A server folder that cannot be served."""

    name: str
    folder: Path
    reason: str
    """One sentence for the operator."""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A folder or file that is probably meant to be a server, but has no `main.py` in its place."""

    name: str
    folder: Path
    hint: str
    """What to do so that it is found."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found in the server directories. Each folder is in at most one of the lists."""

    definitions: list[ServerDefinition] = field(default_factory=list)
    failures: list[LoadFailure] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
