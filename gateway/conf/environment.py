"""The environment and the `.env` file: reading the settings' texts, and refusing to start with wrong ones.

What is refused: a variable that looks like a setting and is none, a line of the file that cannot be read, and a value
that is not of its kind. All of them are reported at once, a line each. Without this, `GUMCP_AUHT=keys` would start a
host that is open to everybody.

python-dotenv reads the file: unlike others it tells which lines it could not read. pydantic-settings was tried too: it
passes over unknown variables of the environment and over unreadable lines, so nothing would be left for it to do but
the values, whose messages had to be rewritten.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from gateway.conf.declarations import PREFIX, Computed, Setting
from gateway.conf.kinds import Refused, Unusable

FILE_VARIABLE: Final = "GUMCP_ENV_FILE"
"""Names another file than `.env`. Only the environment can say that."""

REFERENCE: Final = "docs/settings.md"

_KUBERNETES: Final = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP|SCTP).*)")
"""What Kubernetes adds to the environment of every pod beside a Service named gumcp."""

_NAME: Final = re.compile(rf"\s*(?:export\s+)?({PREFIX}\w+|DATABASE_URL)\b")

_SHOWN_CHARACTERS: Final = 60


class SettingsError(ImproperlyConfigured):
    """Settings that the host does not start with: one line for each."""


@contextmanager
def ending_with_settings_errors() -> Iterator[None]:
    """End the process with the lines of a `SettingsError` on standard error, and exit status 1, without a traceback."""
    try:
        yield
    except SettingsError as error:
        sys.exit(str(error))


@dataclass(frozen=True)
class _Text:
    value: str
    place: str = ""
    """Where it was read: " in line 3 of .env"; nothing for the environment."""


def read_settings(settings: Any, environ: MutableMapping[str, str], default_file: Path) -> SimpleNamespace:
    """Return the value of every setting of the class `settings`, by variable name.

    Environment variables override lines of the file. The file's other variables, which servers read, are
    put into the environment unless it has them.

    Raises:
        SettingsError: with a line for each thing that is wrong.
    """
    declared: dict[str, Setting[Any]] = settings.declared()
    problems: list[str] = []
    texts = _read_file(_env_file(environ, default_file), problems)
    for name, text in texts.items():
        if name not in declared and not _looks_like_setting(name, declared):
            environ.setdefault(name, text.value)
    texts |= {name: _Text(value) for name, value in environ.items()}

    for name, text in texts.items():
        if name not in declared and _looks_like_setting(name, declared):
            problems.append(_unknown(name, text, declared))
    values = SimpleNamespace()
    for name, setting in declared.items():
        if name in texts or not isinstance(setting.default, Computed):
            setattr(values, name, _parse(setting, texts.get(name), problems))
    if problems:
        raise SettingsError("\n".join(problems))
    for name, setting in declared.items():
        if not hasattr(values, name):
            assert isinstance(setting.default, Computed)
            setattr(values, name, setting.default.value(settings(values)))
    return values


def _env_file(environ: Mapping[str, str], default: Path) -> Path | None:
    named = environ.get(FILE_VARIABLE)
    if named is None:
        try:
            return default if default.exists() else None
        except PermissionError:
            raise SettingsError(
                f"This user may not enter {default.parent}, where {default.name} would be. Start the command in "
                f"another folder, or set {FILE_VARIABLE} to a file, or to nothing."
            ) from None
    if not named.strip():
        return None
    path = default.parent / Path(named).expanduser()
    if not path.is_file():
        raise SettingsError(f"{FILE_VARIABLE} must be a file, or empty for none (got {_shown(named)}).")
    return path


def _read_file(path: Path | None, problems: list[str]) -> dict[str, _Text]:
    if path is None:
        return {}
    from dotenv.parser import parse_stream

    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{path.name} must be a UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read: {error.strerror}.") from None
    texts: dict[str, _Text] = {}
    for binding in parse_stream(io.StringIO(content)):
        # The parser counts blank lines before a binding as its own.
        blank = binding.original.string[: len(binding.original.string) - len(binding.original.string.lstrip())]
        line = binding.original.line + blank.count("\n")
        place = f" in line {line} of {path.name}"
        if binding.error or (binding.key is not None and binding.value is None):
            # The line is not shown: it may hold a secret.
            named = _NAME.match(binding.original.string)
            about = f" ({named.group(1)})" if named else ""
            problems.append(
                f"Line {line} of {path.name}{about} cannot be read: write NAME=value, or # before a comment."
            )
        elif binding.key is not None and binding.value is not None:
            if binding.key in texts:
                problems.append(f"{binding.key} is set twice: also{place}. Remove one of the two.")
            if binding.key == FILE_VARIABLE:
                problems.append(f"{FILE_VARIABLE} can only be set in the environment, not{place}.")
            texts[binding.key] = _Text(binding.value, place)
    return texts


def _parse(setting: Setting[Any], text: _Text | None, problems: list[str]) -> Any:
    if text is None:
        assert isinstance(setting.default, str)
        return setting.kind.parse(setting.default)
    try:
        return setting.kind.parse(text.value)
    except Unusable as error:
        problems.append(f"{setting.name} {error}")
    except ValueError as error:
        value = text.value.strip()
        got = f"its value{text.place} is not shown" if setting.is_secret else f"got {_shown(text.value)}{text.place}"
        if not value:
            got = f"it is empty{text.place}"
        advice = [str(error)] if isinstance(error, Refused) and str(error) else []
        if value[:1] in ("'", '"') and value[:1] == value[-1:]:
            advice.append("Remove the quotes.")
        problems.append(" ".join([f"{setting.name} must be {setting.kind.allowed} ({got}).", *advice]))
    return None


def _looks_like_setting(name: str, declared: Iterable[str]) -> bool:
    """Whether somebody who wrote `name` meant a setting of the host."""
    if name == FILE_VARIABLE or _KUBERNETES.fullmatch(name):
        return False
    upper = name.upper()
    if upper.startswith(PREFIX) or upper in declared:
        return True
    # GUMPC_AUTH, GUMCP-AUTH
    prefix = upper[: len(PREFIX)]
    is_near = SequenceMatcher(None, prefix, PREFIX).ratio() >= 0.8
    return is_near and bool(get_close_matches(upper, declared, 1, cutoff=0.85))


def _unknown(name: str, text: _Text, declared: Mapping[str, Setting[Any]]) -> str:
    # Without the prefix, which would make all of them alike.
    candidates = {known.removeprefix(PREFIX): known for known in declared}
    close = get_close_matches(name.upper().removeprefix(PREFIX), candidates, 1) or get_close_matches(
        name.upper(), declared, 1, cutoff=0.85
    )
    if not close:
        return f"{name} is not a setting{text.place}. All settings are in {REFERENCE}."
    meant = candidates.get(close[0], close[0])
    shown = "" if declared[meant].is_secret else f" (got {_shown(text.value)}{text.place})"
    return f"{name} is not a setting{shown}. Did you mean {meant}?"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
