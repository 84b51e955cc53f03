"""The playground's endpoint: an operator's page opens a session as a user, and posts its messages.

    POST /-/console/playground/{server}/{who}/open   the answer is the session's event stream
    POST /-/console/playground/{server}/{who}/send   one message, with the id of the session in Mcp-Session-Id

`who` is a user id where keys are not checked, otherwise the public part of a key, whose permissions apply. Both
requests need a permission of their own and a CSRF token. What operators do as a user is in the audit log.

This is not a Django view: such a view does not notice that its client left (Django 5.2). Not here: the page
(`console.playground`), the session's messages (`transports.console`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from django.http import HttpRequest
from mcp_types import JSONRPCRequest

from gateway.access import audit
from gateway.access.identity import Identity, current_identity, parse_user_id
from gateway.conf import conf
from gateway.console.playground import PERMISSION, PREFIX
from gateway.endpoints.answering import new_stream
from gateway.endpoints.base import SESSION_GONE, McpRequest
from gateway.endpoints.opening import open_session
from gateway.endpoints.page_requests import PageRequests
from gateway.exceptions import (
    AuthenticationUnavailable,
    ClientDisconnected,
    GatewayError,
    InvalidSessionKey,
    NotPermitted,
    OutOfScope,
    SessionLimitReached,
)
from gateway.host.host import Host
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.current_request import CurrentRequest, current_request
from gateway.http.refusals import refuse, refuse_error, refuse_method
from gateway.http.requests import client_address, header, is_json
from gateway.http.responses import respond
from gateway.jsonrpc import JSONRPCMessage, message_from
from gateway.transports.console import ConsoleTransport
from gateway.transports.sessions import Session

LOOK_SECONDS: Final = 20.0
"""How often an operator is checked again. A check may take 10 s, so one who logs out is cut off within 30 s."""

IDLE: Final = "it was not used for too long"
"""End reason of a session whose page was left open."""

LOGGED_OUT: Final = "its operator could not be confirmed: logged out, permission lost, or no database"
"""End reason of a session whose operator did not pass a repeated check."""

_AUDITED: Final = {"tools/call": "tool", "prompts/get": "prompt"}
"""Methods that are written into the audit log with the name of what is used."""

_AUDITED_WITHOUT_NAME: Final = {"resources/read": "reads a resource"}
"""Methods that are written without it: URIs may have arguments in them."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a path names."""

    server_name: str
    who: str
    action: str


@dataclass(frozen=True, slots=True)
class _Playground:
    """One open session."""

    session: Session[ConsoleTransport]
    place: tuple[str, str]
    operator_id: Any


class PlaygroundEndpoint:
    """Answers the playground's requests, and passes all others on."""

    def __init__(self, host: Host, inner: Any) -> None:
        self._host = host
        self._inner = inner
        self._pages = PageRequests()
        self._by_id: dict[str, _Playground] = {}
        self._slots: Counter[Any] = Counter()
        """Operators -> how many sessions they have or are opening."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if not path.startswith(PREFIX):
            await self._inner(scope, receive, send)
        elif scope["method"] != "POST":
            await refuse_method(send, "POST")
        elif not await self._host.origin_policy.refuse_foreign(scope, send):
            try:
                await self._answer(_place_of(path), scope, receive, send)
            except GatewayError as error:
                await refuse_error(send, error)
            except ClientDisconnected:
                return

    async def _answer(self, place: _Place | None, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_json(scope):  # before Django looks for a form
            raise NotPermitted
        self._host.doorkeeper.require_reachable(scope)
        request = await self._pages.admit(scope, PERMISSION)
        if place is None:
            await refuse(send, 404, "unknown_server", "There is nothing at this address.")
            return
        current_request.set(CurrentRequest(place.server_name, scope))
        if place.action == "open":
            await self._open(place, request, scope, receive, send)
        else:
            await self._send(place, request, scope, receive, send)

    # -- Opening -----------------------------------------------------------------------------------------------------

    async def _open(self, place: _Place, page: HttpRequest, scope: Scope, receive: Receive, send: Send) -> None:
        host = self._host
        with self._slot(page.user.pk):
            identity = await self._identity(place)
            current_identity.set(identity)
            with identity.answering():
                request = McpRequest(host.availability.find(place.server_name), identity, scope, receive, send)
                await host.doorkeeper.authenticator.count_requests(identity, request.address, 1)
                key = "" if identity.grant is None else f" with the key {identity.grant.public}"
                await self._record(page, place, identity, f"opens a session{key}")
                await self._run(place, page, request)

    async def _run(self, place: _Place, page: HttpRequest, request: McpRequest) -> None:
        host = self._host
        stream = new_stream(self._host, request.send)
        session: Session[ConsoleTransport] = await open_session(
            host,
            request,
            "console",
            lambda running, session: ConsoleTransport(running, session, stream, max_backlog=conf.max_session_backlog),
        )
        self._by_id[session.id] = _Playground(session, (place.server_name, place.who), page.user.pk)
        watch = asyncio.create_task(self._watch(session, request.scope))
        try:
            with host.streams.open(stream, place.server_name):
                await stream.start()
                session.wire.start()
                await stream.run(request.receive)
        finally:
            watch.cancel()
            del self._by_id[session.id]
            session.end()

    async def _watch(self, session: Session[ConsoleTransport], scope: Scope) -> None:
        """End a session that is idle, or whose operator may not use it any more."""
        while True:
            idle_seconds = conf.playground_idle_seconds
            await asyncio.sleep(min(LOOK_SECONDS, idle_seconds))
            if not session.in_flight and time.monotonic() - session.last_used >= idle_seconds:
                session.end(IDLE)
            try:
                await self._pages.require_still(scope, PERMISSION)
            except (NotPermitted, AuthenticationUnavailable):
                session.end(LOGGED_OUT)

    async def _identity(self, place: _Place) -> Identity:
        authenticator = self._host.doorkeeper.authenticator
        if authenticator.checks_keys:
            return await authenticator.identify_for_operator(place.who, place.server_name)
        if ":" in place.who:
            raise InvalidSessionKey("Enter a user id only: without a colon and without a key.")
        return Identity(parse_user_id(place.who))

    @contextmanager
    def _slot(self, operator_id: Any) -> Iterator[None]:
        """Hold room for one session of an operator. Raises `SessionLimitReached`."""
        of_operator = conf.max_playground_sessions_per_operator
        if self._slots[operator_id] >= of_operator:
            raise SessionLimitReached(f"You have {of_operator} playground sessions open. End one of them first.")
        if self._slots.total() >= conf.max_playground_sessions:
            raise SessionLimitReached("Operators have as many playground sessions open as this host allows.")
        self._slots[operator_id] += 1
        try:
            yield
        finally:
            self._slots[operator_id] -= 1
            if not self._slots[operator_id]:
                del self._slots[operator_id]

    # -- Messages ----------------------------------------------------------------------------------------------------

    async def _send(self, place: _Place, page: HttpRequest, scope: Scope, receive: Receive, send: Send) -> None:
        session = self._find(place, page, scope)
        if session is None:
            await refuse(send, 404, "unknown_session", SESSION_GONE)
            return
        identity, address = session.identity, client_address(scope)
        current_identity.set(identity)
        with identity.answering():
            await self._host.doorkeeper.authenticator.count_requests(identity, address, 1)
            grant = identity.grant
            if grant is not None and not grant.allows_server(place.server_name):
                raise OutOfScope("This key is not for this server.", user_id=identity.user_id, key=grant.public)
            incoming = await self._host.message_reader.read(scope, receive, identity, address)
            with incoming.memory:
                message = message_from(incoming.json)
                use = _audited_use(message)
                if use is not None:
                    await self._record(page, place, identity, use)
                # Look again: the session may have ended meanwhile.
                session = self._find(place, page, scope)
                if session is None:
                    await refuse(send, 404, "unknown_session", SESSION_GONE)
                    return
                session.wire.deliver(message, _scope_for_server(scope, place.server_name, identity), incoming.memory)
        await respond(send, 202, b"{}", b"application/json")

    def _find(self, place: _Place, page: HttpRequest, scope: Scope) -> Session[ConsoleTransport] | None:
        """The operator's session. Somebody else's is answered like one that does not exist."""
        found = self._by_id.get(header(scope, b"mcp-session-id") or "")
        if found is None or found.operator_id != page.user.pk or found.place != (place.server_name, place.who):
            return None
        return found.session

    async def _record(self, page: HttpRequest, place: _Place, identity: Identity, detail: str) -> None:
        await self._pages.record(page, audit.RUN_AS, f"{place.server_name} as {identity.user_id}", detail)


def _place_of(path: str) -> _Place | None:
    parts = path.removeprefix(PREFIX).split("/")
    if len(parts) != 3 or not all(parts) or parts[2] not in ("open", "send"):
        return None
    return _Place(*parts)


def _audited_use(message: JSONRPCMessage) -> str | None:
    """What the audit log says of a message; None for one that is not written."""
    if not isinstance(message, JSONRPCRequest):
        return None
    kind = _AUDITED.get(message.method)
    if kind is None:
        return _AUDITED_WITHOUT_NAME.get(message.method)
    name = (message.params or {}).get("name")
    return f"{kind} {name}" if isinstance(name, str) else kind


def _scope_for_server(scope: Scope, server_name: str, identity: Identity) -> Scope:
    """The request as the server's handlers may see it: the user's, with nothing of the operator's cookies."""
    path = f"/{server_name}/{identity.user_id}"
    return {
        **scope,
        "path": path,
        "raw_path": quote(path).encode("ascii"),
        "root_path": "",
        "query_string": b"",
        "headers": [(name, value) for name, value in scope["headers"] if name in (b"host", b"content-type")],
        "url_route": {"args": (), "kwargs": {"server_name": server_name}},
    }
