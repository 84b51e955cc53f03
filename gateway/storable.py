"""Texts as every database stores them and as people can read them there.

Clients, modules and folders choose many texts. PostgreSQL refuses NUL, nothing encodes half of a surrogate pair, and
control and format characters would show other text than is there (`printable`). All are escaped, never dropped: two
folder names must not become equal.
"""

from functools import cache
from typing import Final

from django.db import models

from gateway.printable import LINES, printable

MAX_TEXT_LENGTH: Final = 20_000
"""Longest reason or traceback. A module that fails to load may raise a text of any length."""


def storable(text: str, max_length: int, *, keep: str = "") -> str:
    """`text` with control and format characters escaped, except those in `keep`. If too long, its middle is cut out."""
    text = printable(text, keep)
    if len(text) <= max_length:
        return text
    head = max_length // 2
    return f"{text[:head]}…{text[len(text) - (max_length - head - 1) :]}"


def make_storable(row: models.Model) -> None:
    """Make all texts of `row` storable. Only the long ones, such as tracebacks, keep line breaks."""
    for name, max_length, keep in _text_columns(type(row)):
        setattr(row, name, storable(getattr(row, name), max_length, keep=keep))


@cache
def _text_columns(model: type[models.Model]) -> list[tuple[str, int, str]]:
    """The name, length and kept control characters of each text column of a model."""
    return [
        (column.attname, column.max_length or MAX_TEXT_LENGTH, LINES if isinstance(column, models.TextField) else "")
        for column in model._meta.concrete_fields
        if isinstance(column, models.CharField | models.TextField)
    ]
