"""Checks the requests that scripts of the admin's pages make to endpoints which are not Django views.

Lives here: who is logged in, whether that operator may do this, and whether the request comes from our page. It is read
from the database, in threads, with Django's own middleware. Not here: what the requests do (`playground`).
"""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, Final, TypeVar

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from gateway.access import audit
from gateway.bounded_jobs import BoundedJobs
from gateway.exceptions import AuthenticationUnavailable, NotPermitted
from gateway.http.asgi import Scope

T = TypeVar("T")

THREADS: Final = 2
"""How many checks run at once."""

MAX_WAITING: Final = 100
"""How many checks may wait at once; beyond it 503."""

CHECK_SECONDS: Final = 10.0
"""How long a check may take; beyond it 503."""

_UNAVAILABLE: Final = "Operators cannot be checked now, because the database cannot be used. Try again later."

_unavailable: Final = partial(AuthenticationUnavailable, _UNAVAILABLE)


class PageRequests:
    """Checks requests. Used on the host's loop."""

    def __init__(self) -> None:
        # Threads of its own: those of the loop look up names for connections to other hosts.
        self._jobs = BoundedJobs(
            "page-requests", threads=THREADS, max_waiting=MAX_WAITING, seconds=CHECK_SECONDS, refusal=_unavailable
        )

    async def admit(self, scope: Scope, permission: str) -> HttpRequest:
        """The request as Django has it, with its operator. The body is not read.

        Raises:
            NotPermitted: nobody is logged in, the operator lacks `permission`, or the CSRF token is missing or wrong.
            AuthenticationUnavailable: the database cannot be read.
        """
        if not _has_session(scope):  # strangers cost no query
            raise NotPermitted
        request = await self._run(lambda: _admitted(scope, permission))
        if request is None:
            raise NotPermitted
        return request

    async def require_still(self, scope: Scope, permission: str) -> None:
        """Check that the operator is logged in and has the permission. Raises what `admit` raises."""
        if not _has_session(scope):  # strangers take no thread
            raise NotPermitted
        if await self._run(lambda: _operator_request(scope, permission)) is None:
            raise NotPermitted

    async def record(self, request: HttpRequest, action: str, target: str, detail: str) -> None:
        """Write into the audit log that the operator does something.

        Raises:
            AuthenticationUnavailable: it cannot be written.
        """
        await self._run(lambda: audit.record(action, target, request=request, detail=detail))

    async def _run(self, job: Callable[[], T]) -> T:
        return await self._jobs.run(lambda: _with_connection(job))


def _with_connection(job: Callable[[], T]) -> T:
    try:
        return job()
    finally:
        close_old_connections()


def _has_session(scope: Scope) -> bool:
    name = f"{settings.SESSION_COOKIE_NAME}=".encode()
    return any(key == b"cookie" and name in value for key, value in scope["headers"])


class _CsrfCheck(CsrfViewMiddleware):
    """Django's check, which returns the reason of a refusal instead of a page."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _admitted(scope: Scope, permission: str) -> ASGIRequest | None:
    request = _operator_request(scope, permission)
    if request is None:
        return None
    check = _CsrfCheck(_no_view)
    check.process_request(request)
    # Django looks for the token in a form first. This request has no body; the token is in a header.
    return None if check.process_view(request, _no_view, (), {}) is not None else request


def _operator_request(scope: Scope, permission: str) -> ASGIRequest | None:
    try:
        request = ASGIRequest(scope, BytesIO())
    except (SuspiciousOperation, RequestDataTooBig, UnicodeDecodeError):
        return None
    SessionMiddleware(_no_view).process_request(request)
    AuthenticationMiddleware(_no_view).process_request(request)
    user = request.user
    is_permitted = user.is_active and user.is_staff and user.has_perm(permission)
    return request if is_permitted else None


def _no_view(request: HttpRequest) -> HttpResponse:
    raise NotImplementedError
