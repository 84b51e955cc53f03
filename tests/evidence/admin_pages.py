"""How long the admin's pages take with 10 000 sessions, 200 users, 100 servers and 1 000 000 recorded calls.

    python -m tests.evidence.admin_pages [CALLS]

The database is SQLite in a temporary folder. Pages are asked for through Django's test client, in one process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import timedelta
from typing import Any

SESSIONS, USERS, SERVERS, BATCH = 10_000, 200, 100, 5_000
ROUNDS = 5


def fill(calls: int) -> dict[str, Any]:
    """Make the rows; returns one of each that has a page of its own."""
    from django.contrib.auth.models import User
    from django.db import connection, transaction
    from django.utils import timezone

    from gateway.access.store import issue_key
    from gateway.records.models import HostProcess, ServerRecord, SessionRecord

    now = timezone.now()
    process = HostProcess.objects.create(hostname="here", pid=1, started_at=now, last_seen_at=now)
    tools = [f"tool-{number}" for number in range(30)]
    servers = ServerRecord.objects.bulk_create(
        ServerRecord(
            name=f"server-{number}",
            folder=f"/servers/{number}",
            status="failed" if number % 20 == 0 else "loaded",
            reason="In main.py, line 1: ValueError" if number % 20 == 0 else "",
            traceback="x" * 5000,
            loaded_at=now,
            version="1",
            tools=tools,
        )
        for number in range(SERVERS)
    )
    users = [User.objects.create(username=f"user-{number}", is_staff=number < 3) for number in range(USERS)]
    keys = [issue_key(user)[0] for user in users]
    sessions = SessionRecord.objects.bulk_create(
        (
            SessionRecord(
                process=process,
                server_name=f"server-{number % SERVERS}",
                user_id=f"user-{number % USERS}",
                key=keys[number % USERS].public,
                transport="streamable-http",
                client_name=f"client-{number % 7}",
                protocol_version="2025-11-25",
                opened_at=now - timedelta(seconds=number),
                last_activity_at=now - timedelta(seconds=number / 2),
                state="open",
            )
            for number in range(SESSIONS)
        ),
        batch_size=BATCH,
    )
    adapt = connection.ops.adapt_datetimefield_value
    columns = "at, server_name, tool, user_id, key, session, client, protocol_version, transport, outcome, milliseconds"
    statement = (
        f"INSERT INTO records_callrecord ({columns}, size_bytes, reason, times)"
        " VALUES (%s, %s, %s, %s, %s, %s, 'client 1', '2025-11-25', 'sse', %s, %s, 100, %s, 1)"
    )
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(
            statement,
            (
                (
                    adapt(now - timedelta(seconds=(calls - number) / 10)),
                    f"server-{number % SERVERS}",
                    tools[number % 30],
                    f"user-{number % USERS}",
                    keys[number % USERS].public,
                    sessions[number % SESSIONS].pk.hex,
                    "refused" if number % 100 == 0 else "ok",
                    number % 50,
                    "rate_limited" if number % 100 == 0 else "",
                )
                for number in range(calls)
            ),
        )
    return {"server": servers[1].pk, "session": sessions[-1].pk, "user": users[1].pk, "key": keys[1].pk}


def measure(rows: dict[str, Any]) -> None:
    """Print for each page how long it takes, at the median and at the most, and how many queries."""
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    for path in (
        "/admin/records/serverrecord/",
        f"/admin/records/serverrecord/{rows['server']}/change/",
        "/admin/records/sessionrecord/",
        "/admin/records/sessionrecord/?q=user-7",
        "/admin/records/sessionrecord/?_facets=True",
        "/admin/records/sessionrecord/?server_name=server-3&p=1",
        f"/admin/records/sessionrecord/{rows['session']}/change/",
        "/admin/records/callrecord/",
        "/admin/records/callrecord/?q=user-7",
        "/admin/records/callrecord/?server_name=server-3&outcome=failed",
        "/admin/auth/user/",
        f"/admin/auth/user/{rows['user']}/change/",
        "/admin/access/apikey/",
        f"/admin/access/apikey/{rows['key']}/change/",
        "/admin/records/hostprocess/",
        "/admin/records/instancerecord/",
    ):
        taken = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            answer = client.get(path)
            taken.append(time.perf_counter() - started)
            assert answer.status_code == 200, (path, answer.status_code)
        with CaptureQueriesContext(connection) as queries:
            client.get(path)
        taken.sort()
        shown = path.replace(str(rows["session"]), "SESSION")
        print(f"{shown:72} {taken[ROUNDS // 2] * 1000:6.0f} ms {taken[-1] * 1000:6.0f} ms {len(queries):3} queries")


def main(calls: int) -> None:
    """Make a database, fill it, and ask for the pages."""
    with tempfile.TemporaryDirectory(prefix="gumcp-pages-") as folder:
        os.environ |= {
            "GUMCP_DATA_DIR": folder,
            "GUMCP_ENV_FILE": "",
            "DJANGO_SETTINGS_MODULE": "gumcp_site.settings",
            "GUMCP_SERVER_DIRS": folder,
            "GUMCP_ALLOWED_HOSTS": "testserver",
        }
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        started = time.perf_counter()
        rows = fill(calls)
        seconds = time.perf_counter() - started
        print(f"{SESSIONS} sessions, {USERS} users, {SERVERS} servers, {calls} calls, made in {seconds:.0f} s")
        measure(rows)


if __name__ == "__main__":
    main(int([*sys.argv, "1000000"][1]))
