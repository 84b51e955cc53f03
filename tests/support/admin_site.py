"""A browser of Django's admin on a host process, and the users who log in to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

from tests.support.host_process import HostProcess

MAKE_USERS = """
from django.contrib.auth.models import Permission, User
User.objects.create_superuser("root", password="root-password")
for name, codenames in (("viewer", ["view_sessionrecord", "view_serverrecord"]), ("stranger", [])):
    user = User.objects.create_user(name, password=f"{name}-password", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
"""


class Admin:
    """A browser of the admin that is logged in."""

    def __init__(self, host: HostProcess, name: str, password: str | None = None) -> None:
        self.base = host.base_url
        self.cookies = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self.cookies))
        self.get("/admin/login/")
        self.post("/admin/login/?next=/admin/", {"username": name, "password": password or f"{name}-password"})

    def get(self, path: str) -> str:
        with self._opener.open(self.base + path, timeout=10) as response:
            return str(response.read().decode())

    def post_json(self, path: str, content: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Post JSON as a page's script does, on a connection of its own. Close the response."""
        (token,) = (cookie.value for cookie in self.cookies if cookie.name == "csrftoken")
        fields = {"Content-Type": "application/json", "X-CSRFToken": token or "", "Origin": self.base}
        request = Request(self.base + path, json.dumps(content).encode(), {**fields, **(headers or {})})
        return self._opener.open(request, timeout=10)

    def post(self, path: str, fields: Mapping[str, str | list[str]]) -> str:
        (token,) = (cookie.value for cookie in self.cookies if cookie.name == "csrftoken")
        data = urlencode({**fields, "csrfmiddlewaretoken": token or ""}, doseq=True).encode()
        request = Request(self.base + path, data, {"Referer": self.base + path})
        with self._opener.open(request, timeout=10) as response:
            return str(response.read().decode())
