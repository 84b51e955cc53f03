"""`manage.py create_key` and `revoke_key`."""

import json
import re
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import override_settings
from django.utils import timezone

from gateway.access.keys import KEY_PATTERN, is_well_formed, key_digest
from gateway.access.models import ApiKey, AuditEvent
from gateway.conf import conf
from gateway.management.commands import create_key
from gateway.management.shell import this_python
from tests.support.processes import manage
from tests.support.server_folders import WriteServer

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_key_alone_is_on_standard_output_and_its_digest_in_the_row() -> None:
    out, err = run("create_key", "ada", "--label", "laptop")
    assert re.fullmatch(f"{KEY_PATTERN}\n", out)
    assert is_well_formed(out.strip())
    assert "only now" in err
    assert out.strip() not in err
    row = ApiKey.objects.get()
    assert (row.user.username, row.label, row.scope, row.expires_at) == ("ada", "laptop", None, None)
    assert bytes(row.digest) == key_digest(out.strip())
    assert not row.user.has_usable_password()
    event = AuditEvent.objects.get()
    assert event.action == "key issued"
    assert event.actor.startswith("manage.py create_key (")
    assert out.strip() not in str(vars(event))


def test_servers_and_tools_become_the_scope() -> None:
    run("create_key", "ada", "--servers", "time, notes", "--tools", "notes:read,notes:list,mail:send")
    assert ApiKey.objects.get().scope == {"time": None, "notes": ["read", "list"], "mail": ["send"]}
    assert AuditEvent.objects.get().detail == '{"time": null, "notes": ["read", "list"], "mail": ["send"]}'


@override_settings(GUMCP_PUBLIC_URL="https://mcp.example.com/tools/")
def test_it_says_where_clients_send_the_key() -> None:
    assert "to https://mcp.example.com/tools/SERVER, or" in run("create_key", "ada")[1]
    err = run("create_key", "ada", "--servers", "workshop")[1]
    assert "the URL https://mcp.example.com/tools/workshop/ada:KEY." in err


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["--servers", "workshpo"], "There is no server called workshpo at present. Did you mean workshop?"),
        (["--tools", "workshop:ehco"], "workshop has no tool ehco at present. Did you mean echo?"),
        (["--tools", "broken:do"], "The tools of broken could not be listed, so they were not checked."),
    ],
)
def test_scope_that_names_nothing_known_is_warned_of_and_kept(
    write_server: WriteServer, options: list[str], warning: str
) -> None:
    broken = write_server("broken", "1 / 0")
    with override_settings(GUMCP_SERVER_DIRS=[*conf.server_dirs, broken]):
        out, err = run("create_key", "ada", *options)
    assert is_well_formed(out.strip())
    assert f"Warning: {warning}" in err


def test_scope_of_what_there_is_warns_of_nothing() -> None:
    assert "Warning" not in run("create_key", "ada", "--servers", "workshop", "--tools", "moody:built")[1]


@pytest.mark.parametrize("when", ["30d", "720h", "29d24h", "{date}", "{date}T12:00:00", "{date}T12:00:00+01:00"])
def test_expiry_is_a_number_of_days_or_a_moment(when: str) -> None:
    run("create_key", "ada", "--expires", when.format(date=(timezone.now() + timedelta(days=30)).date()))
    expires_at = ApiKey.objects.get().expires_at
    assert expires_at is not None
    assert timedelta(days=28) < expires_at - timezone.now() < timedelta(days=32)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ada", "--expires", "soon"),
        ("ada", "--expires", "2020-01-01"),
        ("ada", "--expires", "99999999999d"),
        ("ada", "--expires", ""),
        ("ada", "--servers", ""),
        ("ada", "--servers", " , "),
        ("ada", "--tools", ""),
        ("ada", "--servers", "time", "--tools", ""),
        ("ada", "--tools", "read"),
        ("ada", "--tools", ":read"),
        ("ada", "--label", "caf\udce9"),
        ("ada", "--label", "laptop\n2026-01-01 WARNING forged"),
        ("ada", "--label", "laptop\u202e"),
        ("ada\u2028", "--label", "laptop"),
        ("ada", "--servers", "time\u200b"),
        ("ada", "--servers", "caf\udce9"),
        ("ada", "--tools", "time:caf\udce9"),
        ("messages",),
        ("a/b",),
        ("a:b",),
        ("a\nb",),
        ("..",),
        ("a\udcffb",),
        ("",),
    ],
)
def test_nonsense_makes_neither_key_nor_user(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        run("create_key", *arguments)
    assert not ApiKey.objects.exists()
    assert not User.objects.exists()


def test_json_output_has_what_a_program_needs() -> None:
    facts: dict[str, Any] = json.loads(run("create_key", "ada", "--json")[0])
    assert is_well_formed(facts["key"])
    assert facts["key"].startswith(facts["public"])
    assert facts["id"] == ApiKey.objects.get().pk


def test_revoked_by_the_public_part_or_by_the_whole_key_which_is_not_repeated() -> None:
    key, other = (run("create_key", "ada")[0].strip() for _ in range(2))
    row = ApiKey.objects.get(digest=key_digest(key))
    out, _ = run("revoke_key", row.public)
    assert row.public in out
    out, _ = run("revoke_key", other)
    assert other not in out
    assert all(row.revoked_at for row in ApiKey.objects.all())
    assert AuditEvent.objects.filter(action="key revoked").count() == 2
    for secret in ("gumcp_nothing0_pasted-secret", "pasted-secret-\udcff"):
        with pytest.raises(CommandError) as refusal:
            run("revoke_key", secret)
        assert "pasted-secret" not in str(refusal.value)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("arguments", [("create_key", "ada"), ("revoke_key", "gumcp_Ab3dE6gH")])
def test_without_tables_it_is_said_what_to_run(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = manage(*arguments, data_dir=tmp_path)
    assert done.returncode == 1
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert f"{this_python()} manage.py migrate" in done.stderr
    assert "make run" in done.stderr


def test_database_that_fails_though_it_has_its_tables_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(create_key, "issue_key", fail)
    with pytest.raises(OperationalError, match="locked"):
        run("create_key", "ada")
