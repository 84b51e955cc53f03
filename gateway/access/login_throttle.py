"""Limits failed logins, by address and by name, and records attempts in the audit log.

An address that fails too often is refused for a while, whatever names it tries. Attempts to guess one name's password
from many addresses have a limit of their own, which refuses strangers only: who has logged in under this name from this
address before is never refused because of failures elsewhere.

To check a password takes a second of a processor on purpose, so strangers may have two attempts under way at once, or
one where there are no more than two processors; the next is refused for a second. Otherwise many addresses could keep
all threads and processors busy.

An attempt is counted before it is answered, and given back if it did not fail. So attempts under way count too, and no
more than the limit can be tried at once. An attempt whose client leaves before the answer counts as failed.

Not here: the limit itself (GUMCP_LIMIT_FAILED_LOGINS). Nothing that was typed is kept: a name is counted as a digest,
because people type passwords into the wrong field.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.contrib.auth.forms import UsernameField
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.deprecation import MiddlewareMixin

from gateway.access import audit
from gateway.access.limit_hits import write_refusals
from gateway.access.limits import SITE_FACTOR, RateLimits
from gateway.access.models import ACTOR_LENGTH, AuditEvent
from gateway.conf import Rule, conf
from gateway.http.addresses import counted_address, counted_site
from gateway.storable import storable

logger = logging.getLogger(__name__)

RULE: Final[Rule] = "failed logins"

STRANGERS_FACTOR: Final = 10
"""How many times the limit of one address strangers have together under one name."""

KNOWN_DAYS: Final = 90
"""How long an address stays known for a name after a login."""

MAX_KNOWN_ADDRESSES: Final = 1000
"""How many addresses of one name are compared."""

MAX_STRANGERS: Final = 2 if (os.cpu_count() or 1) > 2 else 1
"""Attempts from addresses that are new for their names that may be under way at once. Each keeps a processor busy, and
calls need one, too."""

FORGOTTEN_SECONDS: Final = 10.0
"""An attempt whose client has left is not seen to end. So long it counts as under way."""

_NAME_FIELD: Final = UsernameField(max_length=User._meta.get_field("username").max_length)
"""What Django's login form makes of a typed name before it looks for the user."""

_COUNTED: Final = "gumcp.counted_login"
"""Where a request keeps the subjects that it was counted under. The CSRF middleware uses META in the same way."""

_STRANGERS: Final = ", from new addresses"
"""How the subject ends under which strangers are counted for a name."""


class LoginThrottle(MiddlewareMixin):
    """Middleware: answers attempts to log in with 429 once too many have failed, and records them in the audit log.

    It stands after AuthenticationMiddleware, which knows the user.
    """

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        self._limits = RateLimits({RULE: conf.rate_limits[RULE]}, conf.limits_storage_url)
        self._strangers = _UnderWay()

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """Refuse an attempt beyond the limit; otherwise count it."""
        if not _is_attempt(request):
            return None
        seconds = self._count(request)
        if seconds is None:
            return None if self._has_turn(request) else _refusal("Too many logins at once. Try again in a second.", 1)
        try:
            write_refusals(self._limits)
        except DatabaseError as error:  # the refusal matters more than its row
            logger.warning("A refused login could not be written down: %s", type(error).__name__)
        return _refusal(f"Too many failed logins. Try again in {seconds} seconds.", seconds)

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Note how an attempt ended. An attempt that met an error of the host says nothing about the password."""
        counted: list[str] | None = request.META.pop(_COUNTED, None)
        if counted is None:
            return response
        self._strangers.end(id(request))
        if response.status_code == 200:  # Django's login page shows the form again,
            audit.record(audit.LOGIN_FAILED, "admin", request=request)
            return response
        self._give_back(counted)
        if response.status_code == 302:  # and redirects those it lets in.
            audit.record(audit.LOGGED_IN, "admin", request=request)
        return response

    def _count(self, request: HttpRequest) -> int | None:
        """Count an attempt. Returns the seconds until the next one if it is refused, and then counts nothing."""
        subjects = _subjects(request)
        # Looked at before any is counted: attempts under a name that is refused use up nothing of their address.
        for subject, _ in subjects:
            seconds = self._limits.is_spent(RULE, subject)
            if seconds is not None:
                return seconds
        counted: list[str] = []
        for subject, factor in subjects:
            seconds = async_to_sync(self._limits.spend)(RULE, subject, factor=factor)
            if seconds is not None:
                self._give_back(counted)
                return seconds
            counted.append(subject)
        request.META[_COUNTED] = counted
        return None

    def _has_turn(self, request: HttpRequest) -> bool:
        """Whether an attempt that was counted may go on now. One that may not is given back."""
        counted: list[str] = request.META[_COUNTED]
        if not counted[-1].endswith(_STRANGERS) or self._strangers.begin(id(request)):
            return True
        self._give_back(request.META.pop(_COUNTED))
        return False

    def _give_back(self, subjects: list[str]) -> None:
        for subject in subjects:
            self._limits.give_back(RULE, subject)


class _UnderWay:
    """Attempts of strangers that are under way. Used in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[int, float] = {}

    def begin(self, attempt: int) -> bool:
        """Note one more, unless there are too many. Returns whether it was noted."""
        now = time.monotonic()
        with self._lock:
            self._begun = {known: at for known, at in self._begun.items() if now - at < FORGOTTEN_SECONDS}
            if len(self._begun) >= MAX_STRANGERS:
                return False
            self._begun[attempt] = now
            return True

    def end(self, attempt: int) -> None:
        """Note that one has ended."""
        with self._lock:
            self._begun.pop(attempt, None)


def _refusal(message: str, seconds: int) -> HttpResponse:
    return HttpResponse(
        message, status=429, content_type="text/plain; charset=utf-8", headers={"Retry-After": str(seconds)}
    )


def _is_attempt(request: HttpRequest) -> bool:
    return request.method == "POST" and request.path in (reverse("admin:login"), reverse("console:login"))


def _subjects(request: HttpRequest) -> list[tuple[str, int]]:
    """What an attempt is counted under, each with how many times the limit it has."""
    address = str(request.META.get("REMOTE_ADDR") or "")
    subjects = [(counted_address(address), 1)]
    site = counted_site(address)
    if site is not None:
        subjects.append((site, SITE_FACTOR))
    # As the form reads it: "root" with a space, or in full-width letters, is the same user.
    name = _NAME_FIELD.to_python(request.POST.get("username"))
    if name and not has_logged_in_from(name, address):
        digest = salted_hmac("gumcp.login-throttle", name, algorithm="sha256").hexdigest()[:16]
        subjects.append((f"name {digest}{_STRANGERS}", STRANGERS_FACTOR))
    return subjects


def has_logged_in_from(name: str, address: str) -> bool:
    """Whether the audit log has a login under this name from this address, or from its IPv6 network."""
    logins = AuditEvent.objects.filter(
        action=audit.LOGGED_IN,
        actor=storable(name, ACTOR_LENGTH),
        at__gte=timezone.now() - timedelta(days=KNOWN_DAYS),
    )
    counted = counted_address(address)
    try:
        known = logins.values_list("address", flat=True).distinct()[:MAX_KNOWN_ADDRESSES]
        return any(counted_address(login_address) == counted for login_address in known)
    except DatabaseError:  # the login itself will say so
        return False
