"""Keeping a caller's key from the server's module, where an operator wants that (`GUMCP_HIDE_KEYS_FROM_SERVERS`).

Not here: what the factory is given (`Identity.key_for_factory`).
"""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from gateway.identity import Identity


def scope_for_server(scope: MutableMapping[str, Any], identity: Identity) -> MutableMapping[str, Any]:
    """The request as the server's handlers may see it: without the key, in header and path, if that is hidden."""
    if identity.grant is None or not identity.grant.is_hidden:
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"authorization", b"referer")]
    server_name = scope["url_route"]["kwargs"]["server_name"]
    path = f"/{server_name}/{identity.user_id}"
    return {
        **scope,
        "headers": headers,
        "path": path,
        "raw_path": quote(path).encode("ascii"),
        "url_route": {"args": (), "kwargs": {"server_name": server_name}},
    }
