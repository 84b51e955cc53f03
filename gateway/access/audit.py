"""The trail of what operators did. Written here, shown by the admin, changed by nobody.

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
LOGGED_IN: Final = "logged in"
LOGIN_FAILED: Final = "login failed"


def record(
    action: str,
    target: str,
    *,
    request: HttpRequest | None = None,
    command: str = "",
    actor: str = "",
    detail: str = "",
) -> None:
    """Note that an operator did something: the user of `request`, or who runs `command`. Never a secret."""
    address = ""
    if request is not None:
        actor = actor or (request.user.get_username() if request.user.is_authenticated else "(nobody)")
        address = str(request.META.get("REMOTE_ADDR") or "")
    elif command:
        actor = f"{command} ({_system_user()})"
    event = AuditEvent(actor=actor, action=action, target=target, detail=detail, address=address)
    make_storable(event)  # the names of users, folders and whoever runs a command are anybody's choice
    event.save()
    logger.info("Audit: %s: %s %s", actor, action, target)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown user"
