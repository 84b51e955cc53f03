"""An application's module as `gumcp_site.asgi` is one: `daphne tests.serving.under_daphne:application`."""

import sys
from typing import Any

from gateway.serving import ServingHooks, ServingLimits, install_if_daphne

IS_DAPHNE = install_if_daphne(ServingLimits(body_bytes=10), ServingHooks(redact=lambda path: "/redacted"))


async def application(scope: Any, receive: Any, send: Any) -> None:
    body = b"Twisted is loaded" if "twisted" in sys.modules else b"Twisted is not loaded"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
