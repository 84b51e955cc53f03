"""Keeping a caller's key from the server's module, where an operator wants that (`GUMCP_HIDE_KEYS_FROM_SERVERS`).

Not here: what the factory is given (`Identity.key_for_factory`).
"""

from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from gateway.access.identity import Identity

MAX_ENCODINGS: Final = 4
"""How many times over a value is decoded in the search for a key; what is encoded more often is taken for one."""


def scope_for_server(scope: MutableMapping[str, Any], identity: Identity) -> MutableMapping[str, Any]:
    """The request as the server's handlers may see it: without the key, wherever it stands, if that is hidden."""
    if identity.grant is None or not identity.grant.is_hidden:
        return scope
    key = (identity.api_key or "").encode()
    query: bytes = scope.get("query_string", b"")
    headers = [
        (name, value)
        for name, value in scope["headers"]
        # Proxies copy what they got: X-Original-URI, X-Forwarded-Authorization, …
        if name not in (b"authorization", b"referer") and not _says(value, key)
    ]
    server_name = scope["url_route"]["kwargs"]["server_name"]
    path = f"/{server_name}/{identity.user_id}"
    return {
        **scope,
        "headers": headers,
        "path": path,
        "raw_path": quote(path).encode("ascii"),
        "query_string": b"" if _says(query, key) else query,
        "url_route": {"args": (), "kwargs": {"server_name": server_name}},
    }


def _says(value: bytes, key: bytes) -> bool:
    """Whether `key` stands in `value`, as it is or percent-encoded, by several proxies one after another too."""
    for _ in range(MAX_ENCODINGS):
        if key in value:
            return True
        decoded = unquote_to_bytes(value)
        if decoded == value:
            return False
        value = decoded
    return True
