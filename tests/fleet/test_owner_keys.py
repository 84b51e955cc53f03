"""Which caller a request belongs to, as the ring sees it."""

from typing import Any

import pytest

from gateway.fleet.owner_keys import owner_key


def scope(path: str, authorization: str | None = None) -> dict[str, Any]:
    headers = [(b"authorization", authorization.encode())] if authorization else []
    return {"raw_path": path.encode(), "path": path, "headers": headers}


@pytest.mark.parametrize(
    ("path", "authorization", "key"),
    [
        ("/notes/ada", None, b"notes/ada"),
        ("/notes/ada:k1", None, b"notes/k1"),
        ("/notes/ada%3Ak1", None, b"notes/k1"),
        ("/notes/ada:k1:more", None, b"notes/k1:more"),
        ("/notes/ada:k1/messages/", None, b"notes/k1"),
        ("/notes/ada:k1", "Bearer k2", b"notes/k2"),
        ("/notes", "bearer k2", b"notes/k2"),
        ("/notes/messages/", "Bearer k2", b"notes/k2"),
        ("/notes", None, None),
        ("/notes", "Basic abc", None),
        ("/-/console/playground/notes/ada/open", None, b"notes/ada"),
        ("/-/console/playground/notes/%C3%A5da/send", None, "notes/åda".encode()),
        ("/-/playground/", None, None),
        ("/admin/login/", None, None),
        ("/health_check", None, None),
        ("/", None, None),
    ],
)
def test_key_names_the_server_and_the_caller(path: str, authorization: str | None, key: bytes | None) -> None:
    asked = scope(path, authorization)
    assert owner_key("POST", asked["raw_path"], asked["headers"]) == key
