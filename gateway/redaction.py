"""Taking secrets out of text before it is written down. Every log record, access line and error passes through here."""

import logging
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

REDACTED: Final = "[redacted]"

PUBLIC_PATHS: Final = ("/admin/", "/static/")
"""Paths of Django's own pages, whose second segment is no key."""

_SECOND_SEGMENT: Final = re.compile(r"^(/+[^/?]*/+)[^/?]+")

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
        self._keyed = re.compile(r"/([^/?\s\"'<>]+)/[^/?\s\"'<>:]+(?::|%3[Aa])(?!\d{1,6}(?:\D|$))[^/?\s\"'<>]+")
        self._session_ids = re.compile(r"(session_id=)[^&\s\"'<>]+")

    def learn(self, server_names: Iterable[str]) -> None:
        """Take these for the servers' names from now on."""
        names = "|".join(re.escape(name) for name in sorted(server_names, key=len, reverse=True))
        # Not the files of a server's folder, which tracebacks name.
        self._known = re.compile(rf"/({names})/(?![\w.-]+\.py\b)[^/?\s\"'<>]+") if names else None

    def __call__(self, text: str) -> str:
        """`text` with its session keys and session ids blanked."""
        if "/" in text:
            if self._known is not None:
                text = self._known.sub(rf"/\1/{REDACTED}", text)
            text = self._keyed.sub(rf"/\1/{REDACTED}", text)
        return self._session_ids.sub(rf"\1{REDACTED}", text)

    def path(self, path: str) -> str:
        """A request's path and query, where the second segment is a key whatever it looks like."""
        if path.startswith(PUBLIC_PATHS):
            return self(path)
        return self(_SECOND_SEGMENT.sub(rf"\1{REDACTED}", path))


def install_record_redaction(redactor: PathRedactor) -> None:
    """Pass every log record of the process through `redactor`, whoever makes it and whichever handler writes it.

    A record factory, because handlers are other people's (uvicorn brings its own, so does pytest) and a filter would
    have to be put on each of them.
    """
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "redacts", False):
        return

    def make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if isinstance(record.args, dict):
            record.args = {name: _redacted(argument, redactor) for name, argument in record.args.items()}
        elif record.args:
            # Argument by argument: uvicorn's access formatter reads them by position, the path being the third.
            redact_text = redactor.path if record.name == "uvicorn.access" else redactor
            record.args = tuple(_redacted(argument, redact_text) for argument in record.args)
        if isinstance(record.msg, str):
            record.msg = redactor(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            # Handlers print this text instead of formatting the exception themselves.
            record.exc_text = redactor("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    make_redacted_record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted_record)


def _redacted(argument: Any, redactor: Callable[[str], str]) -> Any:
    if isinstance(argument, str):
        return redactor(argument)
    if isinstance(argument, BaseException) or type(argument).__module__.startswith(("django.", "daphne.", "asyncio")):
        return redactor(str(argument))
    return argument
