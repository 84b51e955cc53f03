"""What is wrong in one process, and what follows from it for the whole host.

Texts name servers and the public parts of keys. They contain nothing that a client or a server's code said.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

EventName = Literal["server_failed", "server_blocked", "host_degraded", "many_refusals", "key_expires"]

EVENTS: Final[tuple[EventName, ...]] = get_args(EventName)

EVENT_LABELS: Final[Mapping[EventName, str]] = {
    "server_failed": "A server failed to load",
    "server_blocked": "A server is blocked",
    "host_degraded": "The host is degraded",
    "many_refusals": "Many requests are refused",
    "key_expires": "A key is about to expire",
}

OF_SERVERS: Final = "servers"
OF_DATABASE: Final = "database"
"""Subjects of `host_degraded`. Servers that failed or are blocked have events of their own as well."""

WHOLE_HOST: Final = "host"

MAX_NAMED: Final = 5
"""How many servers a text names."""


@dataclass(frozen=True)
class Troubles:
    """What is wrong in one process."""

    failed_servers: tuple[str, ...] = ()
    blocked_servers: tuple[str, ...] = ()
    database: str = ""
    """What is wrong with the database, as a part of a sentence; empty if nothing is."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Refused requests of the last minute, by reason."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON for a row."""
        return {
            **asdict(self),
            "failed_servers": list(self.failed_servers),
            "blocked_servers": list(self.blocked_servers),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Troubles":
        """Read it from a row, which a process of another version may have written."""
        return cls(
            tuple(stored.get("failed_servers", ())),
            tuple(stored.get("blocked_servers", ())),
            stored.get("database", ""),
            stored.get("refusals", {}),
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now, which an alert is about."""

    event: EventName
    subject: str
    """The server, the public part of the key, or what degrades the host. One alert for each event and subject."""
    text: str = field(compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Event and subject: two conditions with the same key are about the same alert."""
        return self.event, self.subject


def conditions_of(troubles: Iterable[Troubles], *, many_refusals: int) -> list[Condition]:
    """What is wrong with the host whose processes have these troubles.

    `many_refusals`: how many refused requests in a minute are an alert; 0 for none.
    """
    troubles = list(troubles)
    failed = sorted({name for found in troubles for name in found.failed_servers})
    blocked = sorted({name for found in troubles for name in found.blocked_servers})
    conditions = [
        *(
            Condition("server_failed", name, f"The server {name} cannot be loaded. Its page in the admin says why.")
            for name in failed
        ),
        *(
            Condition(
                "server_blocked",
                name,
                f"The server {name} is blocked: a call keeps its event loop, and all of its users wait.",
            )
            for name in blocked
        ),
    ]
    if causes := causes_of_servers(failed, blocked):
        conditions.append(Condition("host_degraded", OF_SERVERS, f"The host is degraded: {'; '.join(causes)}."))
    if databases := [found.database for found in troubles if found.database]:
        conditions.append(Condition("host_degraded", OF_DATABASE, degraded_by_database(databases[0])))
    refusals: Counter[str] = Counter()
    for found in troubles:
        refusals.update(found.refusals)
    if many_refusals and refusals.total() >= many_refusals:
        reason, count = refusals.most_common(1)[0]
        text = f"{refusals.total()} requests were refused within a minute, {count} of them with the reason {reason}."
        conditions.append(Condition("many_refusals", WHOLE_HOST, text))
    return conditions


def degraded_by_database(cause: str) -> str:
    """The text of a condition."""
    return f"The host is degraded: {cause}."


def causes_of_servers(failed: Sequence[str], blocked: Sequence[str]) -> list[str]:
    """Why these servers degrade the host, as parts of a sentence."""
    causes = [f"{_names(failed)} cannot be loaded"] if failed else []
    causes += [f"{_names(blocked)} {'is' if len(blocked) == 1 else 'are'} blocked"] if blocked else []
    return causes


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
