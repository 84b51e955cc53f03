"""The playground's page: an operator picks a server and a user, and uses what the server offers.

The page's script speaks MCP with the endpoint of `endpoints.playground`, which checks the same permission again. This
module only says which servers and users there are.
"""

import json
from typing import Any, Final

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import F, Q
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import get_script_prefix
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from gateway.access.models import ApiKey, read_scope
from gateway.apps import GatewayConfig
from gateway.conf import conf
from gateway.http.page_headers import POLICY

PERMISSION: Final = "access.run_as"
"""What an operator needs."""

PREFIX: Final = "/-/console/playground/"
"""Where the page's script finds the endpoint."""

MAX_OFFERED_KEYS: Final = 200
"""How many keys the page offers to choose from. The others are found by a search."""


@never_cache
@require_safe
@login_required(login_url="admin:login")
def playground(request: HttpRequest) -> HttpResponseBase:
    """Show the page. `?server=` and `?key=` choose a server and a key, `?q=` searches keys."""
    if not (request.user.is_staff and request.user.has_perm(PERMISSION)):
        raise PermissionDenied
    needs_key = conf.auth_mode == "keys"
    servers = GatewayConfig.current().registry.names
    chosen, search = request.GET.get("key", ""), request.GET.get("q", "").strip()
    rows = _valid_keys(search) if needs_key else []
    is_long = len(rows) > MAX_OFFERED_KEYS
    offered = rows[:MAX_OFFERED_KEYS]
    if needs_key and chosen not in [key.public for key in offered]:
        offered = [key for key in _valid_keys(chosen) if key.public == chosen] + offered
    context = {
        **admin.site.each_context(request),
        "title": "Playground",
        "servers": servers,
        "server": request.GET.get("server", ""),
        "needs_key": needs_key,
        "keys": [_offer(key) for key in offered],
        "is_long": is_long,
        "chosen": chosen,
        "search": search,
        "username": request.user.get_username(),
        "endpoint": get_script_prefix().rstrip("/") + PREFIX,
    }
    response = render(request, "console/playground.html", context)
    # Sounds that servers answer with. Images may be data: URLs on every page.
    response.headers["Content-Security-Policy"] = f"{POLICY}; media-src data:"
    return response


def _valid_keys(search: str) -> list[ApiKey]:
    """The valid keys that match, those that were used last first; one more than are offered at most."""
    keys = ApiKey.objects.filter(revoked_at=None, user__is_active=True).select_related("user")
    if search:
        keys = keys.filter(
            Q(user__username__icontains=search) | Q(label__icontains=search) | Q(public__icontains=search)
        )
    newest_use_first = keys.order_by(F("last_used_at").desc(nulls_last=True), "user__username", "id")
    return [key for key in newest_use_first[: 2 * MAX_OFFERED_KEYS] if key.state == "valid"][: MAX_OFFERED_KEYS + 1]


def _offer(key: ApiKey) -> dict[str, Any]:
    """A key as the page offers it. `servers` is empty if it is for all of them."""
    servers = read_scope(key.scope)
    label = f", {key.label}" if key.label else ""
    return {
        "public": key.public,
        "text": f"{key.user.get_username()} ({key.public}…{label})",
        "servers": "" if servers is None else json.dumps(list(servers)),
    }
