"""Keeps a caller's key from the server's handlers, where an operator wants that (`GUMCP_HIDE_KEYS_FROM_SERVERS`).

The factory then gets None as well (`Identity.api_key`).
"""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from gateway.access.identity import Identity
from gateway.access.key_search import contains_key


def scope_for_server(scope: MutableMapping[str, Any], identity: Identity) -> MutableMapping[str, Any]:
    """The request as the server's handlers may see it: without the key, wherever it stands, if keys are hidden."""
    if not identity.is_key_hidden:
        return scope
    query: bytes = scope.get("query_string", b"")
    headers = [
        (name, value)
        for name, value in scope["headers"]
        # Proxies copy what they got: X-Original-URI, X-Forwarded-Authorization, …
        if name not in (b"authorization", b"referer") and not contains_key(value.decode("latin-1"))
    ]
    server_name = scope["url_route"]["kwargs"]["server_name"]
    path = f"/{server_name}/{identity.user_id}"
    return {
        **scope,
        "headers": headers,
        "path": path,
        "raw_path": quote(path).encode("ascii"),
        "query_string": b"" if contains_key(query.decode("latin-1")) else query,
        "url_route": {"args": (), "kwargs": {"server_name": server_name}},
    }
