"""Passes every log record of the process through the redactor, and escapes control characters in what it prints.

A record factory does it, whoever makes the record and whichever handler writes it: handlers belong to others (uvicorn
brings its own, so does pytest), and a filter would have to be put on each of them. Not here: what is redacted in a text
(`redaction`).
"""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from gateway.access.identity import current_identity
from gateway.access.redaction import PathRedactor, redact
from gateway.printable import LINES, Lines, printable

_PATH_LOGGERS: Final = frozenset({"uvicorn.access", "django.request", "django.security.csrf"})
"""Loggers whose arguments are whole decoded paths: a key in them may look like further segments."""

_FOREIGN_ERRORS: Final = re.compile(
    r"(?:mcp|asyncio|gateway\.(?:compat|instances\.lanes|transports\.dispatcher))(?:\.|$)"
)
"""Loggers of exceptions that servers' handlers raised: their texts often contain the arguments of the call."""

_TASKS_ERROR: Final = re.compile(r"(\bexception=\w+).*>", re.DOTALL)
"""The exception in asyncio's description of a task whose result nobody has read."""

_LEFT_OUT: Final = "[its text is left out]"


def install_record_redaction(redactor: PathRedactor) -> None:
    """Pass every log record of the process through `redactor`. A second call changes nothing."""
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
            record.args = {name: _cleaned(argument, clean) for name, argument in record.args.items()}
        elif record.args:
            # Argument by argument: uvicorn's access formatter reads them by position, the path being the third.
            clean_argument = clean_path if record.name in _PATH_LOGGERS else clean
            record.args = tuple(_cleaned(argument, clean_argument) for argument in record.args)
        record.msg = _cleaned(record.msg, clean, keep=LINES)
        if record.exc_info and record.exc_info[1] is not None:
            # Handlers print this text instead of formatting the exception themselves.
            if _FOREIGN_ERRORS.match(record.name):
                if isinstance(record.msg, str):
                    record.msg = _TASKS_ERROR.sub(rf"\1: {_LEFT_OUT}>", record.msg)
                record.exc_text = "".join(_without_texts(record.exc_info[1])).rstrip()
            else:
                text = clean("".join(traceback.format_exception(*record.exc_info))).rstrip()
                record.exc_text = printable(text, keep=LINES)
        return record

    make_redacted_record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted_record)


def _current_key() -> str | None:
    identity = current_identity.get()
    return None if identity is None else identity.api_key


def _cleaned(argument: Any, clean: Callable[[str], str], keep: str = "") -> Any:
    """`argument` without secrets and control characters; as text if its text had some."""
    if isinstance(argument, str):
        return printable(clean(argument), keep=LINES if isinstance(argument, Lines) else keep)
    if argument is None or isinstance(argument, int | float):
        return argument
    try:
        text = str(argument)
    # The `__str__` of somebody else's class. Logging contains the same error when it formats the record.
    except Exception:
        return argument
    cleaned = printable(clean(text), keep=keep)
    return argument if cleaned == text else cleaned


def _without_texts(error: BaseException, known: frozenset[int] = frozenset()) -> Iterator[str]:
    """A traceback with the frames and types of a chain of exceptions, without their texts."""
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
