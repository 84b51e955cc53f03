"""Django's pages as the host serves them: under its own names only, and with bodies of limited length."""

from typing import Any

from gateway.http.asgi import Receive, Scope, Send
from gateway.http.body_limit import BodyLimit
from gateway.http.origins import OriginPolicy


class DjangoPages:
    """Passes requests on to Django."""

    def __init__(self, django: Any, policy: OriginPolicy, max_body_bytes: int) -> None:
        self._policy = policy
        self._django = BodyLimit(django, max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # Django would answer a foreign name with a bare "Bad Request (400)".
        if not await self._policy.refuse_foreign_name(scope, send):
            await self._django(scope, receive, send)
