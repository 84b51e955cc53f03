"""The file that `manage.py export_config` writes and `manage.py import_config` reads: JSON with a version.

Lives here: what may stand in it, and the checks that need no database. Not here: where its values come from
(`configuration_export`) and what an import changes (`configuration_import`).

An import leaves alone what a file leaves out: a field of an entry, or a whole list.
"""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from django.core.exceptions import ValidationError as DjangoValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gateway.access.models import read_scope
from gateway.alerts.troubles import EventName
from gateway.printable import is_printable, printable

FORMAT: Final = "gumcp configuration"
VERSION: Final = 1

MAX_FILE_BYTES: Final = 16 * 1024 * 1024

_MAX_COUNT: Final = 2_147_483_647
"""What every database can store in the columns of counts."""


class ConfigurationError(ValueError):
    """The file cannot be used. The message says why, in one line."""


def _require_printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("has control or format characters")
    return text


def _read_moment(value: object) -> object:
    """Read a moment, which is a text with its offset to UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
        if value.tzinfo is None:
            raise ValueError("needs a time zone, such as 2026-12-31T18:00:00+00:00")
    return value


def _require_scope(scope: object) -> object:
    try:
        read_scope(scope)
    except DjangoValidationError as error:
        raise ValueError(" ".join(error.messages)) from None
    return scope


_is_printable = AfterValidator(_require_printable)
_Text = Annotated[str, _is_printable]
_Name = Annotated[str, Field(min_length=1, max_length=255), _is_printable]
_UserName = Annotated[str, Field(min_length=1, max_length=150), _is_printable]
_GroupName = Annotated[str, Field(min_length=1, max_length=150), _is_printable]
_Seconds = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]


class Entry(BaseModel):
    """One object of the file. Types are not converted, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    named_by: ClassVar[str] = "name"
    """The field that tells the entries of a list apart."""

    @property
    def title(self) -> str:
        """The name of the entry."""
        return str(getattr(self, self.named_by))

    def values(self) -> dict[str, Any]:
        """What the entry says, without its name. What was left out is not there."""
        return {field: getattr(self, field) for field in type(self).model_fields if self._says(field)}

    def _says(self, field: str) -> bool:
        return field in self.model_fields_set and field != self.named_by


class ServerEntry(Entry):
    """How operators want a server to run. `null` stands for the setting's value."""

    name: _Name
    is_enabled: bool = True
    call_timeout_seconds: _Seconds | None = None
    max_call_seconds: _Seconds | None = None
    max_concurrent_calls: _Count | None = None
    max_concurrent_calls_per_user: _Count | None = None
    max_threads: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    when_blocked: Literal["", "spill", "wait"] = ""
    isolation: Literal["", "process", "none"] = ""

    @property
    def is_default(self) -> bool:
        """Whether nothing is set for the server."""
        return self.model_dump() == ServerEntry(name=self.name).model_dump()


class GroupEntry(Entry):
    """A group of operators and what they may do: `records.view_sessionrecord`."""

    name: _GroupName
    permissions: list[_Text] = []


class UserEntry(Entry):
    """A user and what they may do. Passwords are not part of the file."""

    named_by: ClassVar = "username"

    username: _UserName
    is_active: bool = True
    is_staff: bool = False
    is_superuser: bool = False
    groups: list[_GroupName] = []
    permissions: list[_Text] = []


class KeyEntry(Entry):
    """A key that is not revoked, by its public part. Neither its text nor its digest is part of the file."""

    named_by: ClassVar = "public"

    public: _Name
    user: _UserName
    label: Annotated[str, Field(max_length=100), _is_printable] = ""
    scope: Annotated[Any, AfterValidator(_require_scope)] = None
    expires_at: Annotated[datetime | None, BeforeValidator(_read_moment)] = None


class AlertEntry(Entry):
    """Who is told of alerts. The file has no secret that signs webhooks, but a URL may have a token in it."""

    name: Annotated[str, Field(min_length=1, max_length=100), _is_printable]
    kind: Literal["webhook", "email"] = "webhook"
    url: Annotated[str, Field(max_length=2000), _is_printable] = ""
    addresses: Annotated[str, Field(max_length=1000), _is_printable] = ""
    events: list[EventName] = []
    is_enabled: bool = True


class Configuration(Entry):
    """The whole file."""

    format: Literal["gumcp configuration"] = FORMAT
    version: int = VERSION
    gumcp: str = ""
    """The version of guMCP that wrote it. For people."""
    exported_at: str = ""
    servers: list[ServerEntry] = []
    groups: list[GroupEntry] = []
    users: list[UserEntry] = []
    keys: list[KeyEntry] = []
    alert_destinations: list[AlertEntry] = []

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


_WORDS: Final = {"extra_forbidden": "is not a field that is known", "model_type": "must be an object"}
"""What is said in place of pydantic's own words, by the type of the error."""

LISTS: Final = ("servers", "groups", "users", "keys", "alert_destinations")


def read_configuration(path: Path) -> Configuration:
    """Read and check a file.

    Raises:
        ConfigurationError: it cannot be read, is not such a file, or something in it is wrong.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB.")
    return parse_configuration(content)


def parse_configuration(content: bytes) -> Configuration:
    """Check the content of a file.

    Raises:
        ConfigurationError
    """
    try:
        written = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ConfigurationError("The file must be a UTF-8 text.") from None
    except RecursionError:
        raise ConfigurationError("The file is not JSON that can be read: it is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"The file is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"The file is not JSON that can be read: {error}.") from None
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        raise ConfigurationError(f'The file is not a configuration of guMCP: it has no "format": "{FORMAT}".')
    version = written.get("version")
    if type(version) is not int or version != VERSION:
        shown = version if type(version) is int and abs(version) < _MAX_COUNT else "missing or not a small number"
        raise ConfigurationError(f"The file's version is {shown}; this version of guMCP reads version {VERSION}.")
    try:
        configuration = Configuration.model_validate(written)
    except ValidationError as error:
        raise ConfigurationError(sentence(error)) from None
    for name in LISTS:
        _require_different(name, (entry.title for entry in getattr(configuration, name)))
    return configuration


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        _require_different("one object", (name for name, _ in pairs))
    return read


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _require_different(where: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigurationError(f"{printable(name)[:100]!r} is there twice, in {where}. Remove one of the two.")


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in one line, without the value."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    first = errors[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    where = printable(where)[:100]
    what = _WORDS.get(first["type"]) or printable(first["msg"]).removeprefix("Value error, ").removesuffix(".")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {what}.{more}"
