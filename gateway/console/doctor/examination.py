"""One examination of a host: find its address, then play each client, then check what proxies break."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import httpx2

from gateway.console.doctor import checks
from gateway.console.doctor.clients import CLIENTS, Target, refuse_redirect, require
from gateway.console.doctor.findings import Cause, Fault, Finding
from gateway.console.doctor.wire import Wire

USER_AGENT: Final = "gumcp-doctor"

UNKNOWN_USER: Final = "doctor"
"""The user id where the host does not check keys and none is given."""


HOST_MESSAGE: Final = "guMCP server"
"""How the message of `/` begins."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be examined, and as whom."""

    url: str
    """The host's address, or a server's URL, with or without session key."""
    key: str | None = None
    server: str | None = None
    user_id: str | None = None
    origin: str | None = None
    """Of the web page whose preflight is played; None for the host's own."""
    patience_seconds: float = 10.0
    """How long any answer and a stream's first event may take."""
    silence_seconds: float = 30.0
    """The longest silence that an event stream may have; 0 does not wait for it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the host is, and which server of it is used."""

    base: str
    servers: list[str] | None
    """Those that the key is for; None if the host does not name them, as to a caller without a good key."""
    server: str
    session_key: str | None


def examine(request: Request) -> Iterator[Finding]:
    """Examine a host. Each finding comes as soon as it is known."""
    key = request.key or _key_in(request.url)

    certificates = httpx2.create_ssl_context()

    def wire(user_agent: str = USER_AGENT) -> Wire:
        return Wire(
            user_agent=user_agent,
            secret=key,
            patience_seconds=request.patience_seconds,
            certificates=certificates,
        )

    if request.url.startswith("https:"):
        finding = _try(
            "certificate", partial(checks.check_certificate, request.url, certificates, request.patience_seconds)
        )
        yield finding
        if finding.cause is not None:
            return
    try:
        place = _locate(wire(), request, key)
        checks_keys = _checks_keys(wire(), place)
    except Fault as fault:
        yield Finding("host", str(fault), fault.cause)
        return
    count = "" if place.servers is None else f" with {len(place.servers)} servers for this caller"
    yield Finding("host", wire().shown(f"{place.base} is a guMCP host{count}; using {place.server}"))
    if checks_keys and key is None:
        yield Finding("key", "the host answers 401 without a key", Cause.NO_KEY)
        return
    if not checks_keys:
        yield Finding("key", "not asked for: anybody who reaches the host can use every server")

    user_id = request.user_id or (unquote(place.session_key).partition(":")[0] if place.session_key else None)
    server_url = f"{place.base}/{quote(place.server, safe='')}"
    by_url, by_header = _targets(place.base, server_url, key if checks_keys else None, user_id, checks_keys)
    works_by_url = False
    for client in CLIENTS:
        target = by_url if client.has_key_in_url else by_header
        if target is None:
            seen = "has the key in its URL, and that needs --user-id or the whole URL"
            yield Finding(client.name, seen, is_skipped=True)
            continue
        finding = _try(client.name, partial(client.connect, wire(client.user_agent), target))
        if client.has_key_in_url:
            works_by_url |= finding.cause is None
        elif finding.cause is Cause.WRONG_KEY and works_by_url:
            finding = Finding(client.name, "the key works in the URL and not in Authorization", Cause.LOST_HEADER)
        yield finding

    target = by_url or by_header
    parts = urlsplit(place.base)
    origin = request.origin or f"{parts.scheme}://{parts.netloc}"
    yield _try("browser's preflight", lambda: checks.check_preflight(wire(), target, origin))
    yield _try("404 answers", lambda: checks.check_not_found(wire(), target))
    yield _try("event stream", lambda: checks.check_event_stream(wire(), target, request.silence_seconds))


def _try(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, check())
    except Fault as fault:
        return Finding(subject, str(fault), fault.cause)


def _key_in(url: str) -> str | None:
    """The key in the last segment of a URL, if there is one."""
    return unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]).partition(":")[2] or None


def _locate(wire: Wire, request: Request, key: str | None) -> _Place:
    """Find out which part of the URL is the host's address.

    Raises:
        Fault: none is.
    """
    parts = urlsplit(request.url)
    segments = [segment for segment in parts.path.split("/") if segment]
    fault: Fault | None = None
    for count in range(min(2, len(segments)) + 1):
        kept = segments[: len(segments) - count]
        base = "/".join([f"{parts.scheme}://{parts.netloc}", *kept])
        try:
            servers = _listed_servers(wire, base, key)
        except Fault as error:
            fault = error
            if error.cause in (Cause.UNREACHABLE, Cause.CERTIFICATE):
                break
            continue
        rest = segments[len(segments) - count :]
        name = request.server or (unquote(rest[0]) if rest else servers[0] if servers else None)
        if name is None and servers is None:
            cause = Cause.NO_KEY if key is None else Cause.WRONG_KEY
            raise Fault(cause, "the host names its servers only to callers with a good key")
        if name is None and key is not None:
            raise Fault(Cause.NOT_ALLOWED, "the host has no server that this key is for")
        if name is None:
            raise Fault(Cause.NO_SERVER, "the host has no servers")
        if servers is not None and name not in servers:
            text = f"{base} has no server {name} for this caller; it has {', '.join(servers) or 'none'}"
            raise Fault(Cause.UNKNOWN_SERVER, wire.shown(text))
        return _Place(base, servers, name, rest[1] if len(rest) == 2 else None)
    assert fault is not None
    raise fault


def _listed_servers(wire: Wire, base: str, key: str | None) -> list[str] | None:
    """The servers that the host at `base` names to the caller; None if it names none.

    Raises:
        Fault: there is no host.
    """
    headers = {"Accept": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}
    answer = wire.ask("GET", f"{base}/", headers=headers)
    refuse_redirect(wire, f"GET {wire.shown(base)}/", answer)
    body = answer.json
    if isinstance(body, dict) and str(body.get("message", "")).startswith(HOST_MESSAGE):
        servers = body.get("servers")
        return [str(name) for name in servers] if isinstance(servers, list) else None
    require(wire, f"GET {wire.shown(base)}/", answer)
    raise AssertionError("require() without statuses raises")


def _checks_keys(wire: Wire, place: _Place) -> bool:
    """Whether the host asks for a key. Its `Accept` header excludes event streams, so no session is opened."""
    url = f"{place.base}/{quote(place.server, safe='')}/{UNKNOWN_USER}"
    answer = wire.ask("GET", url, headers={"Accept": "application/json"})
    refuse_redirect(wire, "GET of a server", answer)
    return answer.status == 401


def _targets(
    base: str, server_url: str, key: str | None, user_id: str | None, checks_keys: bool
) -> tuple[Target | None, Target]:
    """Where clients with the key in the URL connect, None if its user is not known, and those with a header."""
    if not checks_keys:
        target = Target(base, f"{server_url}/{quote(user_id or UNKNOWN_USER, safe='')}", {})
        return target, target
    by_header = Target(base, server_url, {"Authorization": f"Bearer {key}"})
    if user_id is None:
        return None, by_header
    segment = quote(f"{user_id}:{key}", safe=":")
    return Target(base, f"{server_url}/{segment}", {}), by_header
