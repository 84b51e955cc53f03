"""Secrets of manifests and callers: which they are, and texts without them.

Operators see command lines and what processes write to standard error. Both often have keys in them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gateway.access.redaction import REDACTED, PathRedactor, redact
from gateway.exceptions import InstanceUnavailable
from gateway.upstreams.inherited import INHERITED_VARIABLES
from gateway.upstreams.placeholders import Caller, Text

_SECRET_NAME: Final = re.compile(
    r"(?:^|[-_.])(?:api_?)?(?:key|token|secret|password|passwd|auth|authorization|pat)$", re.I
)
"""Names of variables, headers and options whose values are secret."""

_REDACT_PATTERNS: Final = PathRedactor(())
"""Removes what is recognized as a secret by its form: keys of this host, credentials in headers and queries."""


def hide_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command without values that look like secrets: `--api-key X`, `--token=X`. Placeholders stay."""
    shown: list[str] = []
    hides_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hides_next and not argument.startswith("-"):
            shown.append(_hidden(argument))
        elif equals and _SECRET_NAME.search(name):
            shown.append(f"{name}={_hidden(value)}")
        else:
            shown.append(_shown(argument))
        hides_next = not equals and argument.startswith("-") and _SECRET_NAME.search(argument) is not None
    return shown


def secrets_of(values: Mapping[str, Text], others: Iterable[Text], caller: Caller) -> tuple[str, ...]:
    """What must not be shown of the values that a server gets for one caller.

    That is the caller's key, what came from the host's environment, and the values of names like `API_KEY`.
    """
    found = [caller.api_key or ""]
    for text in [*values.values(), *others]:
        found += [value for name, value in text.from_environment if name not in INHERITED_VARIABLES]
    for name, text in values.items():
        if _SECRET_NAME.search(name):
            try:
                value = text.render(caller)
            except InstanceUnavailable:  # nothing is started for this caller
                continue
            found += [value, value.rpartition(" ")[2]]
    return tuple(sorted({secret for secret in found if secret}, key=len, reverse=True))


def without_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """A text without these secrets, and without what is recognized as one by its form."""
    return _REDACT_PATTERNS(redact(text, *secrets))


def _shown(argument: str) -> str:
    # A session key that is a placeholder looks like one that is not.
    return argument if "${" in argument else _REDACT_PATTERNS(argument)


def _hidden(value: str) -> str:
    return value if value.startswith("${") and value.endswith("}") else REDACTED
