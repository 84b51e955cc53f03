"""The audit log: what operators did. It is written here and shown in the admin. Nobody changes it.

audit.record(audit.KEY_REVOKED, str(key), request=request)
"""

import getpass
import logging
from typing import Final

from django.http import HttpRequest

from gateway.access.models import AuditEvent
from gateway.storable import make_storable

logger = logging.getLogger(__name__)

KEY_ISSUED: Final = "key issued"
KEY_CHANGED: Final = "key changed"
KEY_REVOKED: Final = "key revoked"
SESSION_ENDED: Final = "session ended"
RUN_AS: Final = "run as"
ALERT_TESTED: Final = "alert tested"
ALERT_RENEWED: Final = "alert secret renewed"
LOGGED_IN: Final = "logged in"
LOGIN_FAILED: Final = "login failed"

MAX_FAILED_LOGINS: Final = 10_000
"""How many failed logins are kept, because anybody can cause them. All other events are kept for good."""

FORGET_EVERY: Final = 100
"""After how many events the oldest failed logins are deleted."""


def record(
    action: str,
    target: str,
    *,
    request: HttpRequest | None = None,
    command: str = "",
    actor: str = "",
    detail: str = "",
) -> None:
    """Record that an operator did something: the user of `request`, or whoever runs `command`. Never a secret."""
    address = ""
    if request is not None:
        actor = actor or (request.user.get_username() if request.user.is_authenticated else "(nobody)")
        address = str(request.META.get("REMOTE_ADDR") or "")
    elif command:
        actor = f"{command} ({_system_user()})"
    event = AuditEvent(actor=actor, action=action, target=target, detail=detail, address=address)
    make_storable(event)  # anybody chooses the names of users, of folders and of who runs a command
    event.save()
    if action == LOGIN_FAILED and event.pk % FORGET_EVERY == 0:
        _forget_failed_logins()
    logger.info("Audit: %s: %s %s", actor, action, target)


def _forget_failed_logins() -> None:
    failed = AuditEvent.objects.filter(action=LOGIN_FAILED)
    for newest_surplus in failed.order_by("-id").values_list("id", flat=True)[
        MAX_FAILED_LOGINS : MAX_FAILED_LOGINS + 1
    ]:
        failed.filter(id__lte=newest_surplus).delete()


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown user"
