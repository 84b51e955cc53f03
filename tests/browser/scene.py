"""A host with something to see, and the pages to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, change_row, expire, issue, revoke
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, until
from tests.support.streamable import StatelessClient
from tests.support.wire import SseStream

HOSTILE_NAME: Final = "<b onmouseover=alert(1)>bold</b>\x1b[31m\u202egnirts\u202c " + "long " * 40
"""What a client calls itself that wants to be noticed."""


@dataclass
class Scene:
    """The host, and what the tests need to know of it."""

    host: HostProcess
    ada: IssuedKey
    bob: IssuedKey
    session: SseStream


def make_operator(host: HostProcess, name: str) -> None:
    """Make an operator who may do everything, with the password `{name}-password`."""
    # One round of hashing: a test need not wait for what attackers shall wait for.
    password = PBKDF2PasswordHasher().encode(f"{name}-password", "salt", iterations=1)
    change_row(
        host.data_dir,
        "INSERT INTO auth_user (username, password, is_active, is_staff, is_superuser, date_joined, first_name,"
        " last_name, email) VALUES (?, ?, 1, 1, 1, datetime('now'), '', '', '')",
        name,
        password,
    )


def make_alerts(host: HostProcess) -> None:
    """Make a destination of alerts that cannot be reached, what was to be sent to it, and an alert."""
    change_row(
        host.data_dir,
        "INSERT INTO alerts_alertdestination (id, name, kind, url, addresses, events, is_enabled, salt, last_error)"
        " VALUES (1, 'pager', 'webhook', 'https://example.com/token', '', '[\"key_expires\"]', 0, 'salt', ?)",
        "The receiver answered with status 500.",
    )
    item = {"text": "This is a test. Nothing is wrong."}
    change_row(
        host.data_dir,
        "INSERT INTO alerts_alertmessage (id, destination_id, is_test, items, created_at, state, attempts,"
        " next_attempt_at, error) VALUES (?, 1, 1, ?, datetime('now'), 'given up', 1, datetime('now'), ?)",
        "0" * 32,
        json.dumps([item, item]),
        "The receiver answered with status 500.",
    )
    change_row(
        host.data_dir,
        "INSERT INTO alerts_alert (event, subject, text, began_at, ending)"
        " VALUES ('server_failed', 'broken-server', 'The server broken-server cannot be loaded.', datetime('now'), '')",
    )


@contextmanager
def shown_host(start_host: StartHost, folder: Path, **settings: str) -> Iterator[Scene]:
    """Run a host that checks keys, with users, keys, sessions, and a server that does not load."""
    broken = folder / "servers" / "broken-server"
    broken.mkdir(parents=True)
    (broken / "main.py").write_text("raise RuntimeError('broken <on> purpose')\n")
    servers = f"{PLAIN_SERVERS}:{BUNDLED_SERVERS}:{broken.parent}"
    with (
        start_host(folder / "data", server_dirs=servers, GUMCP_AUTH="keys", **settings) as host,
        ExitStack() as streams,
    ):
        make_operator(host, "root")
        make_alerts(host)
        ada, bob, eve = (issue(host.data_dir, name) for name in ("ada", "bob", "eve"))
        revoke(host.data_dir, issue(host.data_dir, "ada", {"time": None, "workshop": ["echo", "slow"]}))
        expire(host.data_dir, issue(host.data_dir, "bob"))
        session = streams.enter_context(host.session("workshop", ada.session_key, name="a-client"))
        session.call("echo", text="x")
        streams.enter_context(host.session("time", bob.session_key, name="another-client"))
        streams.enter_context(host.session("workshop", eve.session_key, name=HOSTILE_NAME))
        host.session("workshop", bob.session_key, name="one-that-left").close()
        StatelessClient(host, "workshop", bob.session_key).call("echo", text="y")
        query = "SELECT 1 FROM records_sessionrecord WHERE state = 'closed' AND messages_in > 1"
        until(lambda: host.rows(query))
        yield Scene(host, ada, bob, session)


def pages(scene: Scene) -> list[str]:
    """The addresses of all pages, each once, of rows that have something to show."""

    def first(table: str, condition: str) -> str:
        (row,) = scene.host.rows(f"SELECT id FROM {table} WHERE {condition} LIMIT 1")
        return str(row["id"])

    servers = "/admin/records/serverrecord"
    clients = "/admin/records/sessionrecord"
    workshop = first("records_serverrecord", "name = 'workshop'")
    failed = first("records_serverrecord", "status = 'failed'")
    client = UUID(first("records_sessionrecord", "user_id = 'ada' AND state = 'open'"))
    user = first("auth_user", "username = 'ada'")
    return [
        "/-/connect/",
        "/-/playground/",
        "/admin/",
        f"{servers}/",
        f"{servers}/{workshop}/change/",
        f"{servers}/{failed}/change/",
        f"{clients}/?state__exact=all",
        f"{clients}/{client}/change/",
        "/admin/records/callrecord/",
        "/admin/records/hostprocess/",
        "/admin/records/instancerecord/",
        "/admin/access/apikey/",
        f"/admin/access/apikey/{scene.ada.id}/change/",
        "/admin/access/apikey/add/",
        "/admin/access/auditevent/",
        "/admin/access/limithit/",
        "/admin/alerts/alert/",
        "/admin/alerts/alertdestination/",
        "/admin/alerts/alertdestination/1/change/",
        "/admin/auth/user/",
        f"/admin/auth/user/{user}/change/",
    ]
