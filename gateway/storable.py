"""Texts as every database takes them. Clients, modules and folders may say what some refuse."""

from functools import cache
from typing import Final

from django.db import models

MAX_TEXT_LENGTH: Final = 20_000
"""Longest reason or traceback: a module that fails to load says what it likes."""


def is_storable(text: str) -> bool:
    """Whether every database takes it: PostgreSQL refuses NUL, and nothing encodes half of a surrogate pair."""
    return _escaped(text) == text


def storable(text: str, max_length: int) -> str:
    """`text` without NUL and lone surrogates, and without its middle if it is too long."""
    text = _escaped(text)
    if len(text) <= max_length:
        return text
    head = max_length // 2
    return f"{text[:head]}…{text[len(text) - (max_length - head - 1) :]}"


def make_storable(row: models.Model) -> None:
    """Make all texts of `row` storable."""
    for name, max_length in _text_columns(type(row)):
        setattr(row, name, storable(getattr(row, name), max_length))


def _escaped(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    # What differs stays different: these texts tell folders apart.
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


@cache
def _text_columns(model: type[models.Model]) -> list[tuple[str, int]]:
    """The names and lengths of a model's text columns."""
    return [
        (column.attname, column.max_length or MAX_TEXT_LENGTH)
        for column in model._meta.concrete_fields
        if isinstance(column, models.CharField | models.TextField)
    ]
