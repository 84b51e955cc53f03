"""`manage.py export_config` and `import_config`: what is carried over, what is left alone, what is refused."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError, call_command
from django.utils import timezone

from gateway.access.models import ApiKey, AuditEvent
from gateway.access.store import issue_key, revoke_keys
from gateway.alerts.models import AlertDestination
from gateway.alerts.signing import shown_secret
from gateway.management import configuration_file
from gateway.management.configuration_export import exported
from gateway.management.configuration_file import ConfigurationError, parse_configuration
from gateway.records.models import ServerRecord

pytestmark = pytest.mark.django_db

HEAD = {"format": "gumcp configuration", "version": 1}
EXPIRY = datetime(2031, 1, 31, 12, tzinfo=UTC)


def server(name: str, **fields: Any) -> ServerRecord:
    return ServerRecord.objects.create(
        **{"name": name, "folder": f"/servers/{name}", "status": "loaded", "loaded_at": timezone.now(), **fields}
    )


@pytest.fixture
def filled() -> None:
    """A database with one of everything that is exported."""
    server("notes", is_enabled=False, max_threads=4, isolation="process", call_timeout_seconds=2.5)
    group = Group.objects.create(name="watchers")
    group.permissions.add(Permission.objects.get(codename="view_overview"))
    ada = User.objects.create_user("ada", password="a-password-of-ada", is_staff=True)
    ada.groups.add(group)
    User.objects.create_superuser("operator", password="a-password-of-operator")
    issue_key(ada, label="laptop", scope={"notes": ["read"]}, expires_at=EXPIRY)
    AlertDestination.objects.create(name="pager", url="https://93.184.215.14/in", events=["host_degraded"])


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({**HEAD, **content}))
    return path


def run(path: Path, *options: str) -> str:
    """Import a file, and return what was printed."""
    out = io.StringIO()
    call_command("import_config", str(path), *options, stdout=out)
    return out.getvalue()


def export(path: Path) -> Path:
    call_command("export_config", str(path), stdout=io.StringIO())
    return path


def without_time() -> dict[str, Any]:
    return exported().model_dump(exclude={"exported_at"})


def test_exported_file_has_no_secret_and_only_its_owner_reads_it(filled: None, tmp_path: Path) -> None:
    path = export(tmp_path / "gumcp.json")
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    key, ada = ApiKey.objects.get(), User.objects.get(username="ada")
    assert key.public in text
    salt = AlertDestination.objects.get().salt
    for secret in (bytes(key.digest).hex(), ada.password, "password", salt, shown_secret(salt)):
        assert secret not in text
    with pytest.raises(CommandError, match="exists"):
        export(path)
    assert path.read_text() == text


def test_import_into_an_empty_database_brings_all_but_keys_and_a_second_one_changes_nothing(
    filled: None, tmp_path: Path
) -> None:
    path, before = export(tmp_path / "gumcp.json"), without_time()
    for model in (ApiKey, User, Group, ServerRecord, AlertDestination):
        model.objects.all().delete()
    server("notes")
    printed = run(path)
    assert "changed   server  notes: is_enabled: true -> false" in printed
    assert "added     group   watchers: permissions: +records.view_overview" in printed
    assert "added     user    ada: is_staff: false -> true; groups: +watchers" in printed
    assert "cannot work here. Issue another: create_key ada" in printed
    assert "added     alert   pager: url: another; events: +host_degraded" in printed
    assert "4 added, 1 changed, 0 unchanged, 1 refused." in printed
    assert {**without_time(), "keys": before["keys"]} == before
    assert not User.objects.get(username="ada").has_usable_password()
    assert "0 added, 0 changed, 5 unchanged, 1 refused." in run(path)
    actions = set(AuditEvent.objects.values_list("actor", "action", "target"))
    assert {(action, target) for actor, action, target in actions if actor.startswith("manage.py import_config")} == {
        ("server changed", "notes"),
        ("group added", "watchers"),
        ("user added", "ada"),
        ("user added", "operator"),
        ("alert added", "pager"),
    }


def test_dry_run_prints_the_same_and_writes_nothing(filled: None, tmp_path: Path) -> None:
    path = write(
        tmp_path / "new.json",
        servers=[{"name": "notes", "is_enabled": True}],
        users=[{"username": "brin"}, {"username": "ada", "is_active": False}],
    )
    before = without_time()
    dry = run(path, "--dry-run")
    assert without_time() == before
    assert not AuditEvent.objects.exists()
    assert "Nothing was written" in dry
    assert run(path).splitlines()[:3] == dry.splitlines()[:3]
    assert without_time() != before


def test_fields_and_rows_that_a_file_does_not_name_are_left_alone(filled: None, tmp_path: Path) -> None:
    run(write(tmp_path / "new.json", users=[{"username": "ada", "is_active": False}]))
    ada = User.objects.get(username="ada")
    assert (ada.is_active, ada.is_staff, ada.groups.count(), ada.check_password("a-password-of-ada")) == (
        False,
        True,
        1,
        True,
    )
    assert ServerRecord.objects.get().max_threads == 4
    assert User.objects.filter(username="operator", is_superuser=True).exists()


def test_key_that_is_here_takes_label_scope_and_expiry_but_is_never_given_back(filled: None, tmp_path: Path) -> None:
    key = ApiKey.objects.get()
    entry = {"public": key.public, "user": "ada", "label": "desk", "scope": None, "expires_at": "2032-01-01T00:00:00Z"}
    printed = run(write(tmp_path / "new.json", keys=[entry]))
    assert 'label: "laptop" -> "desk"' in printed
    key.refresh_from_db()
    assert (key.label, key.scope, key.expires_at) == ("desk", None, datetime(2032, 1, 1, tzinfo=UTC))
    revoke_keys([key])
    assert "it was revoked here, which is for good" in run(write(tmp_path / "new.json", keys=[entry]))
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert "here it belongs to ada" in run(write(tmp_path / "new.json", keys=[{**entry, "user": "brin"}]))


def test_all_rows_of_a_name_get_a_servers_limits(tmp_path: Path) -> None:
    server("notes")
    server("notes", folder="/other/notes", hostname="two")
    run(write(tmp_path / "new.json", servers=[{"name": "notes", "max_concurrent_calls": 3}]))
    assert list(ServerRecord.objects.values_list("max_concurrent_calls", flat=True)) == [3, 3]


def test_server_that_no_host_has_found_is_refused_and_the_rest_is_written(filled: None, tmp_path: Path) -> None:
    path = write(
        tmp_path / "new.json",
        servers=[{"name": "absent", "is_enabled": False}, {"name": "notes", "is_enabled": True}],
    )
    out = io.StringIO()
    with pytest.raises(SystemExit) as exit_:
        call_command("import_config", str(path), stdout=out)
    assert exit_.value.code == 1
    assert "refused   server  absent: no host of this database has found a server of this name" in out.getvalue()
    assert ServerRecord.objects.get().is_enabled


def test_alert_destination_that_may_not_be_reached_here_is_refused(filled: None, tmp_path: Path) -> None:
    entries = [
        {"name": "inside", "url": "http://127.0.0.1:9/", "events": ["key_expires"]},
        {"name": "nobody", "kind": "email", "addresses": "nobody"},
        {"name": "ops", "kind": "email", "addresses": "b@example.com,a@example.com", "events": ["key_expires"]},
    ]
    path, out = write(tmp_path / "new.json", alert_destinations=entries), io.StringIO()
    for _ in range(2):
        with pytest.raises(SystemExit):
            call_command("import_config", str(path), stdout=out)
    printed = out.getvalue()
    assert "inside: The URL names a private address (GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES is false)." in printed
    assert "nobody: One of these is not an e-mail address." in printed
    assert "1 added, 0 changed, 0 unchanged, 2 refused." in printed
    assert "0 added, 0 changed, 1 unchanged, 2 refused." in printed
    assert set(AlertDestination.objects.values_list("name", flat=True)) == {"ops", "pager"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"users": [{"username": "operator", "is_superuser": False}]}, "would leave no active superuser"),
        ({"users": [{"username": "ada", "groups": ["nobody"]}]}, "the group nobody, which does not exist"),
        ({"users": [{"username": "ada", "permissions": ["a.b"]}]}, "the permission a.b, which does not exist"),
        ({"groups": [{"name": "watchers", "permissions": ["a.b"]}]}, "The group watchers has the permission a.b"),
    ],
)
def test_file_that_asks_for_what_cannot_be_is_refused_whole(
    content: dict[str, Any], sentence: str, filled: None, tmp_path: Path
) -> None:
    before = without_time()
    users = [{"username": "brin"}, *content.get("users", [])]
    with pytest.raises(CommandError, match=sentence):
        run(write(tmp_path / "new.json", **{**content, "users": users}))
    assert without_time() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "The file is not JSON: Expecting value (line 1, column 1)."),
        (b"\xff\xfe", "The file must be a UTF-8 text."),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1]", 'it has no "format"'),
        (b'{"format": "x"}', 'it has no "format"'),
        (b"9" * 10_000, "not JSON that can be read"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b'{"format": 1, "format": 2}', "'format' is there twice"),
        ({"version": 2}, "version is 2; this version of guMCP reads version 1"),
        ({"version": "1"}, "version is missing or not a small number"),
        ({"version": True}, "version is missing or not a small number"),
        ({"extra": 1}, "extra: is not a field that is known."),
        ({"users": {}}, "users: Input should be a valid list."),
        ({"users": ["ada"]}, "users[0]: must be an object."),
        ({"users": [{}]}, "users[0].username: Field required."),
        ({"users": [{"username": "ada", "password": "x"}]}, "users[0].password: is not a field that is known."),
        ({"users": [{"username": "ada", "is_staff": 1}]}, "users[0].is_staff: Input should be a valid boolean."),
        ({"users": [{"username": "a" * 151}]}, "users[0].username: String should have at most 150 characters."),
        ({"users": [{"username": "a\u202eb"}]}, "has control or format characters"),
        ({"users": [{"username": "\ud800"}]}, "users[0].username: Input should be a valid string"),
        ({"users": [{"username": "ada"}, {"username": "ada"}]}, "'ada' is there twice, in users."),
        ({"servers": [{"name": "x", "max_threads": 0}]}, "servers[0].max_threads: Input should be greater than"),
        ({"servers": [{"name": "x", "max_threads": 10**12}]}, "servers[0].max_threads: Input should be less than"),
        ({"servers": [{"name": "x", "when_blocked": "no"}]}, "servers[0].when_blocked: Input should be '', 'spill'"),
        ({"keys": [{"public": "k", "user": "a", "scope": {"x": 1}}]}, "keys[0].scope: Write the scope as an object"),
        ({"keys": [{"public": "k", "user": "a", "expires_at": "2031-01-01"}]}, "keys[0].expires_at: needs a time zone"),
        ({"keys": [{"public": "k", "user": "a", "expires_at": "soon"}]}, "keys[0].expires_at: Invalid isoformat"),
        ({"keys": [{"public": "k", "user": "a", "expires_at": 5}]}, "keys[0].expires_at: Input should be a valid"),
        ({"groups": [{"name": n} for n in "aa"], "x": 1, "y": 2}, "x: is not a field that is known. (1 more)"),
    ],
)
def test_file_that_is_not_a_configuration_gets_one_clear_line(content: Any, sentence: str) -> None:
    written = content if isinstance(content, bytes) else json.dumps({**HEAD, **content}).encode()
    with pytest.raises(ConfigurationError) as raised:
        parse_configuration(written)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_file_that_is_too_large_or_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_file, "MAX_FILE_BYTES", 1024 * 1024)
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(CommandError, match="is larger than 1 MiB"):
        run(path)
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        run(tmp_path / "absent.json")
