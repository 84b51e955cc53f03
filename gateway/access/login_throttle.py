"""Failed logins to the admin: counted by address and by name, refused for a while beyond a limit.

An attempt is counted before it is looked at, and given back if it did not fail: so those that are under way count too,
and no more than the limit can be tried at once. One whose client leaves before it is answered counts as failed.

Not here: the limit itself (GUMCP_LIMIT_FAILED_LOGINS). Nothing that was typed is kept: a name is counted as a digest,
since people type passwords into the wrong field.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.contrib.auth.forms import UsernameField
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.crypto import salted_hmac
from django.utils.deprecation import MiddlewareMixin

from gateway.access import audit
from gateway.access.limit_hits import write_refusals
from gateway.access.limits import RateLimits
from gateway.conf import Rule, conf
from gateway.http.addresses import counted_address

logger = logging.getLogger(__name__)

RULE: Final[Rule] = "failed logins"

_NAME_FIELD: Final = UsernameField(max_length=User._meta.get_field("username").max_length)
"""What Django's login form makes of a typed name before it looks for the user."""

_COUNTED: Final = "gumcp.counted_login"
"""Where a request keeps, as the CSRF middleware does, for whom it was counted."""


class LoginThrottle(MiddlewareMixin):
    """Middleware: answers attempts to log in with 429 once too many have failed, and notes both in the audit trail.

    After AuthenticationMiddleware, which knows the user.
    """

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        self._limits = RateLimits({RULE: conf.rate_limits[RULE]}, conf.limits_storage_url)

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """The refusal of an attempt that is one too many."""
        return self._refusal(request) if _is_attempt(request) else None

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Note how an attempt ended. One that met an error of ours is none: it says nothing of the password."""
        counted: list[str] | None = request.META.pop(_COUNTED, None)
        if counted is None:
            return response
        if response.status_code == 200:  # Django's login page shows the form again,
            audit.record(audit.LOGIN_FAILED, "admin", request=request)
            return response
        for subject in counted:
            self._limits.give_back(RULE, subject)
        if response.status_code == 302:  # and redirects those it lets in.
            audit.record(audit.LOGGED_IN, "admin", request=request)
        return response

    def _refusal(self, request: HttpRequest) -> HttpResponse | None:
        subjects = _subjects(request)
        # Looked at before any is counted: attempts under a name that is refused use up nothing of their address.
        waits = {subject: self._limits.is_spent(RULE, subject) for subject in subjects}
        if not any(waits.values()):
            waits = {subject: async_to_sync(self._limits.spend)(RULE, subject) for subject in subjects}
            if not any(waits.values()):
                request.META[_COUNTED] = subjects
                return None
            for subject, wait in waits.items():
                if wait is None:
                    self._limits.give_back(RULE, subject)
        seconds = max(wait for wait in waits.values() if wait is not None)
        try:
            write_refusals(self._limits)
        except DatabaseError as error:  # the refusal matters more than its row
            logger.warning("A refused login could not be written down: %s", type(error).__name__)
        return HttpResponse(
            f"Too many failed logins. Try again in {seconds} seconds.",
            status=429,
            content_type="text/plain; charset=utf-8",
            headers={"Retry-After": str(seconds)},
        )


def _is_attempt(request: HttpRequest) -> bool:
    return request.method == "POST" and request.path == reverse("admin:login")


def _subjects(request: HttpRequest) -> list[str]:
    # As the form reads it: "root" with a space, or in full-width letters, is the same user.
    name = _NAME_FIELD.to_python(request.POST.get("username"))
    subjects = [counted_address(str(request.META.get("REMOTE_ADDR") or ""))]
    if name:
        subjects.append("name " + salted_hmac("gumcp.login-throttle", name, algorithm="sha256").hexdigest()[:16])
    return subjects
