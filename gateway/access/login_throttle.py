"""Failed logins to the admin: counted by address and by name, refused for a while beyond a limit.

Not here: the limit itself (GUMCP_LIMIT_FAILED_LOGINS). Nothing that was typed is kept: a name is counted as a digest,
since people type passwords into the wrong field.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.crypto import salted_hmac

from gateway.access import audit
from gateway.access.limit_hits import write_refusals
from gateway.access.limits import RateLimits, Rule, address_subject
from gateway.conf import conf

logger = logging.getLogger(__name__)

RULE: Final[Rule] = "failed logins"


class LoginThrottle:
    """Middleware: answers attempts to log in with 429 once too many have failed, and notes both in the audit trail.

    After AuthenticationMiddleware, which knows the user.
    """

    async_capable = True
    sync_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._limits = RateLimits({RULE: conf.rate_limits[RULE]}, conf.limits_storage_url)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request."""
        if self._is_async:
            return self._answer(request)
        if not _is_attempt(request):
            return self._get_response(request)  # type: ignore[no-any-return]
        return self._refusal(request) or self._noted(request, self._get_response(request))

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        if not _is_attempt(request):
            return await self._get_response(request)  # type: ignore[no-any-return]
        # In a thread: reading the form may wait for its body, and what happens is written down.
        refusal = await sync_to_async(self._refusal)(request)
        return refusal or await sync_to_async(self._noted)(request, await self._get_response(request))

    def _refusal(self, request: HttpRequest) -> HttpResponse | None:
        waits = [self._limits.is_spent(RULE, subject) for subject in _subjects(request)]
        seconds = max((wait for wait in waits if wait is not None), default=None)
        if seconds is None:
            return None
        try:
            write_refusals(self._limits.take_refusals())
        except DatabaseError as error:  # the refusal matters more than its row
            logger.warning("A refused login could not be written down: %s", type(error).__name__)
        return HttpResponse(
            f"Too many failed logins. Try again in {seconds} seconds.",
            status=429,
            content_type="text/plain; charset=utf-8",
            headers={"Retry-After": str(seconds)},
        )

    def _noted(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        # Django's login page redirects those it lets in, and shows the others the form again.
        if response.status_code == 302:
            audit.record(audit.LOGGED_IN, "admin", request=request)
        else:
            for subject in _subjects(request):
                async_to_sync(self._limits.spend)(RULE, subject)
            audit.record(audit.LOGIN_FAILED, "admin", request=request)
        return response


def _is_attempt(request: HttpRequest) -> bool:
    return request.method == "POST" and request.path == reverse("admin:login")


def _subjects(request: HttpRequest) -> list[str]:
    name = request.POST.get("username")
    subjects = [address_subject(str(request.META.get("REMOTE_ADDR") or ""))]
    if name:
        subjects.append("name " + salted_hmac("gumcp.login-throttle", name, algorithm="sha256").hexdigest()[:16])
    return subjects
