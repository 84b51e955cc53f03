"""What the value of a setting may be: each kind reads one text of the environment and refuses everything else.

A kind says in `allowed` what it takes; messages, `.env.example` and the documentation repeat that text. Not here: which
settings there are (`gateway.conf`) and where their texts come from (`environment`).
"""

import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import SplitResult, urlsplit

T = TypeVar("T")
C = TypeVar("C", bound=str)

_NUMBER: Final = re.compile(r"\d{1,18}")
_SIZE: Final = re.compile(r"(\d{1,18}) ?(|KiB|MiB|GiB)")
_SIZE_UNITS: Final = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_DURATION_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?(ms|s|m|h|d)")
_PLAIN_DURATION: Final = re.compile(r"\d{1,12}(?:\.\d{1,6})?")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_SECONDS: Final = 3650 * 86_400
_SIMPLE_RATE: Final = re.compile(r"[1-9][0-9]{0,8}(?:/| per )(?:[1-9][0-9]{0,3} )?(?:second|minute|hour|day)s?")
_HOST_LABEL: Final = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_PUBLIC_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*/?")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HOST_NAME: Final = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?")

_FLAGS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}

_DATABASE_CLIENTS: Final = {
    "postgres": (("psycopg", "psycopg2"), "'psycopg[binary]'"),
    "postgresql": (("psycopg", "psycopg2"), "'psycopg[binary]'"),
    "mysql": (("MySQLdb",), "mysqlclient"),
    "oracle": (("oracledb",), "oracledb"),
}
"""URL scheme -> the modules of which one must be importable, and what pip is told to install for it."""

_MAIL_PORTS: Final = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}
"""Scheme -> the port where none is given."""

_STORAGE_SCHEMES: Final = ("memory", "file", "redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster")


class Refused(ValueError):
    """A value that a kind does not take; the text is a sentence of advice for the operator."""


class Unusable(ValueError):
    """A value that is well written and cannot be used here; the text says why."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of value."""

    @property
    def allowed(self) -> str:
        """What the value must be: the end of the sentence "X must be …"."""
        raise NotImplementedError

    def parse(self, text: str) -> T:
        """Return the value that `text` stands for.

        Raises:
            ValueError: it is not allowed. `Refused` says what to write instead.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Text(Kind[str]):
    """Any text, spaces at its ends included."""

    @property
    def allowed(self) -> str:
        return "a text"

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Choice(Kind[C]):
    """One of a few words."""

    options: tuple[C, ...]
    is_case_sensitive: bool = True

    @property
    def allowed(self) -> str:
        return f"{', '.join(self.options[:-1])} or {self.options[-1]}"

    def parse(self, text: str) -> C:
        word = text.strip()
        if not self.is_case_sensitive:
            word = word.upper()
        if word in self.options:
            return word
        close = get_close_matches(word, self.options, 1)
        raise Refused(f"Did you mean {close[0]}?" if close else "")


@dataclass(frozen=True)
class Flag(Kind[bool]):
    """Yes or no."""

    @property
    def allowed(self) -> str:
        return "true or false"

    def parse(self, text: str) -> bool:
        try:
            return _FLAGS[text.strip().lower()]
        except KeyError:
            raise ValueError from None


@dataclass(frozen=True)
class PackageFlag(Flag):
    """Yes or no, where yes needs packages that a host has only if an operator has installed them."""

    modules: tuple[str, ...]
    package: str
    """What pip is told to install."""

    def parse(self, text: str) -> bool:
        is_on = super().parse(text)
        if is_on and not all(_is_installed(module) for module in self.modules):
            raise Unusable(f"is on, and its packages are not installed: pip install {self.package}")
        return is_on


@dataclass(frozen=True)
class Count(Kind[int]):
    """A whole number."""

    at_least: int = 0
    at_most: int | None = None
    is_limit: bool = False
    """Whether 0 and an empty text mean that there is no limit."""

    @property
    def allowed(self) -> str:
        if self.at_most is not None:
            return f"a whole number from {self.at_least} to {self.at_most}"
        text = f"a whole number of at least {self.at_least}"
        return f"{text}; 0 or empty: no limit" if self.is_limit else text

    def parse(self, text: str) -> int:
        text = text.strip().replace("_", "")
        if self.is_limit and not text:
            return 0
        if not (text.isascii() and _NUMBER.fullmatch(text)):
            raise ValueError
        number = int(text)
        if number < self.at_least or (self.at_most is not None and number > self.at_most):
            raise ValueError
        return number


@dataclass(frozen=True)
class Port(Count):
    """A TCP port. Kubernetes puts the address of a Service into variables that end in _PORT."""

    at_least: int = 1
    at_most: int | None = 65_535

    def parse(self, text: str) -> int:
        if text.startswith(("tcp://", "udp://")):
            raise Unusable(
                "was set by Kubernetes for a Service named gumcp. Rename the Service, or set enableServiceLinks: false "
                "for the pod."
            )
        return super().parse(text)


@dataclass(frozen=True)
class Size(Kind[int]):
    """A number of bytes, such as 65536 or 64KiB."""

    at_least: int = 1024

    @property
    def allowed(self) -> str:
        return f"a size of at least {self.at_least} bytes, such as 65536, 64KiB or 4MiB"

    def parse(self, text: str) -> int:
        match = _SIZE.fullmatch(text.strip().replace("_", ""))
        if match is None or not text.isascii():
            raise ValueError
        size = int(match.group(1)) * _SIZE_UNITS[match.group(2)]
        if size < self.at_least:
            raise ValueError
        return size


@dataclass(frozen=True)
class Duration(Kind[float]):
    """A length of time: 30s, 5m, 2h, 1h30m. A number without a unit counts in `unit`, which the setting's name says."""

    at_least: float = 0
    """In `unit`."""
    unit: str = "s"
    has_limit: bool = True
    """False: 0 means that there is no limit."""

    @property
    def allowed(self) -> str:
        text = f"a duration such as {'12h or 7d' if self.unit == 'd' else '30s, 5m or 2h'}"
        if self.at_least:
            text += f", of at least {self.at_least:g}{self.unit}"
        return text if self.has_limit else f"{text}; 0: no limit"

    def parse(self, text: str) -> float:
        """Return the duration in `unit`."""
        text = text.strip()
        if not text.isascii():
            raise ValueError
        if _PLAIN_DURATION.fullmatch(text):
            seconds = float(text) * _SECONDS[self.unit]
        else:
            parts = _DURATION_PART.findall(text)
            if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.replace(" ", ""):
                raise ValueError
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        value = seconds / _SECONDS[self.unit]
        if value < self.at_least:
            raise ValueError
        if seconds > _LONGEST_SECONDS:
            raise Refused("Ten years is the longest.")
        return value


@dataclass(frozen=True)
class Rate(Kind[str]):
    """So many in a time, as the `limits` package reads it; empty for no limit."""

    @property
    def allowed(self) -> str:
        return "a rate such as 600/minute or 10 per 5 minutes; 0 or empty: no limit"

    def parse(self, text: str) -> str:
        text = text.strip()
        if text in ("", "0"):
            return ""
        if _SIMPLE_RATE.fullmatch(text):
            return text
        # Imported here: it takes as long as all of Django's settings, and most rates are simple.
        from limits import parse_many

        rates = parse_many(text)
        if len(rates) != 1 or rates[0].amount < 1:
            raise ValueError
        return text


@dataclass(frozen=True)
class Address(Kind[str]):
    """An address or host name to listen on."""

    @property
    def allowed(self) -> str:
        return "an address or host name without a port, such as 127.0.0.1 or ::1"

    def parse(self, text: str) -> str:
        text = text.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1]
        if not _is_address(text) and not _is_host_name(text):
            raise ValueError
        return text


@dataclass(frozen=True)
class PeerAddress(Kind[str]):
    """An address with a port, which other machines connect to; empty for none."""

    @property
    def allowed(self) -> str:
        return "an address with a port, such as 10.0.0.1:8100 or [fd00::1]:8100"

    def parse(self, text: str) -> str:
        text = text.strip()
        if not text:
            return ""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError
        if not (_is_host_name(host) or (_is_address(host.strip("[]")) and (":" in host) == host.startswith("["))):
            raise ValueError
        if host in ("0.0.0.0", "[::]"):  # noqa: S104
            raise Refused("Others cannot connect to it: name the address of this machine.")
        return text


@dataclass(frozen=True)
class PublicUrl(Kind[str]):
    """The address of the host as clients write it; empty where there is none."""

    @property
    def allowed(self) -> str:
        return "an address such as https://mcp.example.com"

    def parse(self, text: str) -> str:
        text = text.strip()
        if text:
            parts = split_url(text)
            if parts.scheme not in ("http", "https") or parts.query or parts.fragment or "@" in parts.netloc:
                raise ValueError
            if not _PUBLIC_PATH.fullmatch(parts.path):
                raise Refused("Its path may have letters, digits and the characters - . _ ~ between slashes.")
        return text


@dataclass(frozen=True)
class _List(Kind[list[str]]):
    """Texts separated by commas; none if the text is empty."""

    def parse(self, text: str) -> list[str]:
        return [self.parse_item(item) for part in text.split(",") if (item := part.strip())]

    def parse_item(self, item: str) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class HostNames(_List):
    """Names that the host answers to."""

    @property
    def allowed(self) -> str:
        return "host names separated by commas, such as mcp.example.com,192.0.2.7"

    def parse_item(self, item: str) -> str:
        bare = item[1:-1] if item.startswith("[") and item.endswith("]") else item.removeprefix(".")
        if item != "*" and not _is_host_name(bare) and not _is_address(bare):
            raise Refused(f"{_shown(item)} is not one.")
        return item


@dataclass(frozen=True)
class Origins(_List):
    """Origins of web pages: scheme, host and port."""

    @property
    def allowed(self) -> str:
        return "origins separated by commas, such as https://app.example.com,http://localhost:5173"

    def parse_item(self, item: str) -> str:
        try:
            parts = split_url(item)
        except ValueError:
            raise Refused(f"{_shown(item)} is not one.") from None
        if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            raise Refused(f"Write {parts.scheme}://{parts.hostname} without what follows it.")
        return item


@dataclass(frozen=True)
class HeaderNames(_List):
    """Names of HTTP headers, or * for any."""

    @property
    def allowed(self) -> str:
        return "header names separated by commas, such as X-Api-Key,X-Request-Id"

    def parse_item(self, item: str) -> str:
        if not _HEADER_NAME.fullmatch(item):
            raise Refused(f"{_shown(item)} is not one.")
        return item.lower()


@dataclass(frozen=True)
class Networks(_List):
    """Addresses, networks, or "unix" for Unix sockets."""

    @property
    def allowed(self) -> str:
        return "addresses and networks separated by commas, such as 127.0.0.1,10.0.0.0/8, or unix"

    def parse_item(self, item: str) -> str:
        if item != "unix":
            try:
                ipaddress.ip_network(item)
            except ValueError as error:
                raise Refused(f"{str(error).rstrip('.')}.") from None
        return item


@dataclass(frozen=True)
class Folder(Kind[Path]):
    """A path; ~ is the user's home."""

    @property
    def allowed(self) -> str:
        return "a folder"

    def parse(self, text: str) -> Path:
        if not text.strip():
            raise ValueError
        return Path(text.strip()).expanduser()


@dataclass(frozen=True)
class Folders(Kind[list[Path]]):
    """Paths separated as in PATH."""

    @property
    def allowed(self) -> str:
        return f"folders separated by {os.pathsep}"

    def parse(self, text: str) -> list[Path]:
        return [Path(part.strip()).expanduser() for part in text.split(os.pathsep) if part.strip()]


@dataclass(frozen=True)
class StorageUrl(Kind[str]):
    """Where limits are counted."""

    @property
    def allowed(self) -> str:
        return "memory://, file:///path/of/a/file or a Redis address such as redis://127.0.0.1:6379/0"

    def parse(self, text: str) -> str:
        text = text.strip() or "memory://"
        if text.partition("://")[0] not in _STORAGE_SCHEMES or "://" not in text:
            raise ValueError
        if text.startswith(("redis://", "rediss://")):
            split_url(text)
        return text


@dataclass(frozen=True)
class RedisUrl(Kind[str]):
    """The address of a Redis; empty for none."""

    @property
    def allowed(self) -> str:
        return "a Redis address such as redis://127.0.0.1:6379/0"

    def parse(self, text: str) -> str:
        text = text.strip()
        if not text:
            return ""
        if not text.startswith(("redis://", "rediss://")):
            raise ValueError
        split_url(text)
        if not all(_is_installed(module) for module in ("redis", "channels_redis")):
            raise Unusable("names a Redis, whose clients are not installed: pip install redis channels-redis")
        return text


@dataclass(frozen=True)
class DatabaseUrl(Kind[dict[str, Any]]):
    """The address of a database as Django's settings of it; empty for the embedded one."""

    @property
    def allowed(self) -> str:
        return "an address such as postgres://user:password@host:5432/name or sqlite:////srv/gumcp.sqlite3"

    def parse(self, text: str) -> dict[str, Any]:
        text = text.strip()
        if not text:
            return {}
        from environ import Env

        scheme, separator, _ = text.partition("://")
        if not separator or scheme not in Env.DB_SCHEMES:
            raise ValueError
        if scheme not in ("sqlite", "spatialite"):
            split_url(text)
        modules, package = _DATABASE_CLIENTS.get(scheme, ((), ""))
        if modules and not any(_is_installed(module) for module in modules):
            raise Unusable(f"names a {scheme} database, whose client is not installed: pip install {package}")
        config: dict[str, Any] = Env.db_url_config(text)
        if not config.get("NAME"):
            raise Refused("It names no database.")
        return config


@dataclass(frozen=True)
class EmailUrl(Kind[dict[str, Any]]):
    """A mail server as Django's settings of it; empty for none."""

    @property
    def allowed(self) -> str:
        return "an address such as smtp+tls://user:password@mail.example.com:587 (also smtp:// and smtp+ssl://)"

    def parse(self, text: str) -> dict[str, Any]:
        text = text.strip()
        if not text:
            return {}
        from environ import Env

        scheme = text.partition("://")[0]
        if scheme == "smtps":
            raise Refused("Write smtp+tls:// for STARTTLS, smtp+ssl:// for TLS from the start.")
        if scheme not in _MAIL_PORTS:
            raise ValueError
        split_url(text)
        config: dict[str, Any] = Env.email_url_config(text)
        return {
            "EMAIL_HOST": config["EMAIL_HOST"],
            "EMAIL_PORT": config["EMAIL_PORT"] or _MAIL_PORTS[scheme],
            "EMAIL_HOST_USER": config["EMAIL_HOST_USER"] or "",
            "EMAIL_HOST_PASSWORD": config["EMAIL_HOST_PASSWORD"] or "",
            "EMAIL_USE_TLS": scheme == "smtp+tls",
            "EMAIL_USE_SSL": scheme == "smtp+ssl",
        }


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def split_url(text: str) -> SplitResult:
    """Return the parts of an address that has a scheme and a host.

    Raises:
        ValueError: it has not, or its port is not one.
    """
    parts = urlsplit(text)
    host = parts.hostname
    if not parts.scheme or not host or any(character.isspace() for character in text):
        raise ValueError
    if not _is_host_name(host) and not _is_address(host):
        raise ValueError
    _ = parts.port
    return parts


def url_host(address: str) -> str:
    """Return how clients on this machine write an address that a server listens on."""
    if address in ("0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address


def _is_host_name(text: str) -> bool:
    return text.isascii() and len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
