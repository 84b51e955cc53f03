"""Taking secrets out of text before it is written down. Every log record, access line and error passes through here.

What is taken out: session keys and session ids in this host's URLs, keys that were issued here (they become their
public part), credentials in headers and queries, and the key of whoever's request is being handled. Not here: Django's
error pages and mails, which pass what they hold through this too (`error_reports`).
"""

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from gateway.access.identity import current_identity
from gateway.access.keys import PREFIX, PUBLIC_LENGTH

REDACTED: Final = "[redacted]"

PUBLIC_PATHS: Final = ("/admin/", "/static/")
"""Paths of Django's own pages, whose second segment is no key."""

# To the end but for a last /messages: uvicorn logs paths decoded, in which a key may have slashes.
_SECOND_SEGMENT: Final = re.compile(r"^(/+[^/?]*/+)([^?]+?)(?=(?:/messages)?/?(?:\?|$))")

# Django's own pages have no colon in their paths; a key that somebody put there may have slashes after it.
_KEYED_TAIL: Final = re.compile(r"/(?!\[)[^/?]*(?::|%3[Aa])[^?]*")

# Also one that was cut or mistyped.
_ISSUED_KEY: Final = re.compile(rf"({PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}})_[0-9A-Za-z]{{8,}}", re.ASCII)
_SHOWN_KEY: Final = re.compile(rf"\[{PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}}\]", re.ASCII)

SECRET_NAMES: Final = re.compile("api_?key|key|token|access_token|password|secret|session_id", re.I)
"""Names of what stands in a query and must not be written down."""

_CREDENTIALS: Final = (
    # As a header is written, and as Python prints one.
    re.compile(
        r"""((?:authorization|cookie|mcp-session-id)['"]?+\s*+[:=,]\s*+(?:b(?=['"]))?+['"]?+)(?!\[redacted\])[^'"\r\n]+""",
        re.I,
    ),
    re.compile(r"(\bbearer\s+)(?!\[redacted\])[A-Za-z0-9._~+/=:-]{8,}", re.I),
    re.compile(rf"""([?&](?:{SECRET_NAMES.pattern})=)[^&\s"'<>]+""", re.I),
    re.compile(r"""(session_id=)[^&\s"'<>]+"""),
)

_PATH_OF_SCOPE: Final = re.compile(r"""('(?:raw_)?path': b?')([^']*)""")
"""In an ASGI scope that an ASGI server prints."""

_PATH_LOGGERS: Final = frozenset({"uvicorn.access", "django.request", "django.security.csrf"})
"""Loggers whose arguments are whole paths, decoded: what looks like further segments may belong to a key."""

_FOREIGN_ERRORS: Final = re.compile(r"(?:mcp|asyncio|gateway\.compat|gateway\.instances\.lanes)(?:\.|$)")
"""Loggers of exceptions that come from servers' handlers: their texts say what handlers were called with."""

_TASKS_ERROR: Final = re.compile(r"(\bexception=\w+).*>", re.DOTALL)
"""In the description of a task that nobody asked how it ended: its exception as Python prints it."""

_LEFT_OUT: Final = "[its text is left out]"

_MIN_SECRET_LENGTH: Final = 4
"""Shorter keys are left alone: they would blank out ordinary words, and are no secrets."""


def redact(text: str, *secrets: str | None) -> str:
    """`text` without the given secrets."""
    for secret in secrets:
        if secret and len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, REDACTED)
    return text


class PathRedactor:
    """Blanks session keys and session ids in this host's URLs, wherever they stand in a text.

    `/{server_name}/{session_key}…?session_id=…` keeps its server and its shape.
    """

    def __init__(self, server_names: Iterable[str]) -> None:
        self.learn(server_names)
        # A key under a name that is not served. Not what looks like a file and a line number.
        self._keyed = re.compile(r"(/[^/?\s\"'<>]+/)([^/?\s\"'<>:]+(?::|%3[Aa])(?!\d{1,6}(?:\D|$))[^/?\s\"'<>]+)")

    def learn(self, server_names: Iterable[str]) -> None:
        """Take these for the servers' names from now on."""
        names = "|".join(re.escape(name) for name in sorted(server_names, key=len, reverse=True))
        # Not the files of a server's folder, which tracebacks name.
        self._known = re.compile(rf"(/(?:{names})/)(?![\w.-]+\.py\b)([^/?\s\"'<>]+)") if names else None
        # As it stands in another URL's query.
        self._quoted = re.compile(rf"(%2F(?:{names})%2F)((?:(?!%2F|%3F)[^/?&\s\"'<>])+)", re.I) if names else None

    def __call__(self, text: str) -> str:
        """`text` with its session keys and session ids blanked."""
        if "/" in text:
            if self._known is not None:
                text = self._known.sub(_blank_segment, text)
            text = self._keyed.sub(_blank_segment, text)
            if "path'" in text:
                text = _PATH_OF_SCOPE.sub(lambda match: match.group(1) + self._blank_second(match.group(2)), text)
        if self._quoted is not None and "%2" in text:
            text = self._quoted.sub(_blank_segment, text)
        if "=" in text or ":" in text or "," in text or " " in text:
            for pattern in _CREDENTIALS:
                text = pattern.sub(rf"\1{REDACTED}", text)
        return _ISSUED_KEY.sub(r"\1", text) if PREFIX in text else text

    def path(self, path: str) -> str:
        """A request's path and query, where the second segment is a key whatever it looks like."""
        return self(self._blank_second(path))

    @staticmethod
    def _blank_second(path: str) -> str:
        if path.startswith(PUBLIC_PATHS):
            return _KEYED_TAIL.sub(f"/{REDACTED}", path)
        return _SECOND_SEGMENT.sub(_blank_segment, path)


def _blank_segment(match: re.Match[str]) -> str:
    """What stands for a session key: the public part of a key that was issued here, so that operators can find it."""
    segment = match.group(2)
    issued = _ISSUED_KEY.search(segment)
    if issued is not None:
        return f"{match.group(1)}[{issued.group(1)}]"
    return match.group(1) + (segment if _SHOWN_KEY.fullmatch(segment) else REDACTED)


def traceback_text(error: BaseException, api_key: str | None) -> str:
    """An exception as Python prints it, without the key of the caller for whom it was raised."""
    return redact("".join(traceback.format_exception(error)), api_key)


def install_record_redaction(redactor: PathRedactor) -> None:
    """Pass every log record of the process through `redactor`, whoever makes it and whichever handler writes it.

    A record factory, because handlers are other people's (uvicorn brings its own, so does pytest) and a filter would
    have to be put on each of them.
    """
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "redacts", False):
        return

    def clean(text: str) -> str:
        return redactor(redact(text, _current_key()))

    def clean_path(text: str) -> str:
        return redactor.path(redact(text, _current_key()))

    def make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if isinstance(record.args, dict):
            record.args = {name: _redacted(argument, clean) for name, argument in record.args.items()}
        elif record.args:
            # Argument by argument: uvicorn's access formatter reads them by position, the path being the third.
            clean_argument = clean_path if record.name in _PATH_LOGGERS else clean
            record.args = tuple(_redacted(argument, clean_argument) for argument in record.args)
        record.msg = _redacted(record.msg, clean)
        if record.exc_info and record.exc_info[1] is not None:
            # Handlers print this text instead of formatting the exception themselves.
            if _FOREIGN_ERRORS.match(record.name):
                if isinstance(record.msg, str):
                    record.msg = _TASKS_ERROR.sub(rf"\1: {_LEFT_OUT}>", record.msg)
                record.exc_text = "".join(_without_texts(record.exc_info[1])).rstrip()
            else:
                record.exc_text = clean("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    make_redacted_record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted_record)


def _current_key() -> str | None:
    identity = current_identity.get()
    return None if identity is None else identity.api_key


def _redacted(argument: Any, clean: Callable[[str], str]) -> Any:
    """`argument`, as text if its text had something to take out."""
    if isinstance(argument, str):
        return clean(argument)
    if argument is None or isinstance(argument, int | float):
        return argument
    try:
        text = str(argument)
    # A stranger's __str__; logging would meet the same when it formats the record, and contains it.
    except Exception:
        return argument
    cleaned = clean(text)
    return argument if cleaned == text else cleaned


def _without_texts(error: BaseException, known: frozenset[int] = frozenset()) -> Iterator[str]:
    """A traceback with the frames and types of a chain of exceptions, and what they say left out."""
    known |= {id(error)}
    cause, context = error.__cause__, error.__context__
    if cause is not None and id(cause) not in known:
        yield from _without_texts(cause, known)
        yield "\nThe above exception was the direct cause of the following exception:\n\n"
    elif context is not None and not error.__suppress_context__ and id(context) not in known:
        yield from _without_texts(context, known)
        yield "\nDuring handling of the above exception, another exception occurred:\n\n"
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}: {_LEFT_OUT}\n".removeprefix("builtins.")
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, 1):
            yield f"In this group, exception {number}:\n"
            yield from _without_texts(member, known)
