"""The pages for everybody who may log in: how to connect a client, and logging in and out.

Not here: the admin, which is for operators.
"""

from typing import Any

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from gateway.access.models import ApiKey, read_scope, require_usable_name
from gateway.apps import GatewayConfig
from gateway.conf import conf
from gateway.console.client_setups import KEY_PLACEHOLDER, Address, setups


class Login(LoginView):
    """The login for users who are not operators. It looks like the admin's."""

    template_name = "admin/login.html"
    next_page = "console:connect"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """What the admin's login page shows."""
        context = {**admin.site.each_context(self.request), "title": "Log in", "app_path": self.request.get_full_path()}
        return {**super().get_context_data(**kwargs), **context}


@never_cache
@require_safe
@login_required(login_url="console:login")
def connect(request: HttpRequest) -> HttpResponseBase:
    """Show what each client takes to reach one server as the user who is logged in."""
    needs_key = conf.auth_mode == "keys"
    rows = ApiKey.objects.filter(user_id=request.user.pk or 0, revoked_at=None).select_related("user")
    keys = [key for key in rows if key.state == "valid"] if needs_key else []
    servers = _visible_servers(request, keys)
    server = request.GET.get("server", servers[0] if servers else "")
    if servers and server not in servers:
        raise Http404
    user_id = request.user.get_username()
    try:
        require_usable_name(user_id)
        problem = ""
    except ValidationError as error:
        problem = " ".join(error.messages)
    context = {
        **admin.site.each_context(request),
        "title": "Connect a client",
        "servers": servers,
        "server": server,
        "setups": setups(Address(conf.base_url, server, user_id, needs_key)) if servers and not problem else [],
        "problem": problem,
        "needs_key": needs_key,
        "placeholder": KEY_PLACEHOLDER,
        "keys": keys,
        "may_issue": request.user.is_staff and request.user.has_perm("access.add_apikey"),
    }
    return render(request, "console/connect.html", context)


def _visible_servers(request: HttpRequest, keys: list[ApiKey]) -> list[str]:
    """The servers that the user may know of: all for staff and in open mode, else those of the user's keys."""
    names = GatewayConfig.current().registry.names
    if conf.auth_mode != "keys" or request.user.is_staff:
        return names
    scopes = [read_scope(key.scope) for key in keys]
    return [name for name in names if any(scope is None or name in scope for scope in scopes)]


def not_here(request: HttpRequest) -> HttpResponseBase:
    """Stand for an address that is answered in front of Django."""
    raise Http404
