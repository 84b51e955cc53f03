"""The audit log takes any text: clients, operators and their systems choose what it is written from."""

import getpass

import pytest
from django.contrib.auth.models import User
from django.test import RequestFactory

from gateway.access import audit
from gateway.access.models import ApiKey, AuditEvent

pytestmark = pytest.mark.django_db


def test_text_that_databases_refuse_is_written_in_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ro\udcffot")
    audit.record("key revoked", "no\0tes", command="manage.py revoke_key", detail="\ud800")
    event = AuditEvent.objects.get()
    assert event.actor == "manage.py revoke_key (ro\\udcffot)"
    assert (event.target, event.detail) == ("no\\x00tes", "\\ud800")


def test_text_that_is_too_long_loses_its_middle() -> None:
    request = RequestFactory().get("/", REMOTE_ADDR="a" * 1000 + "\0")
    audit.record("key revoked", "b" * 1000, request=request, actor="c" * 1000, detail="d" * 1000)
    event = AuditEvent.objects.get()
    event.full_clean()
    assert [len(text) for text in (event.actor, event.target, event.detail, event.address)] == [200, 300, 500, 200]
    assert event.address.endswith("a\\x00")


def test_failed_logins_are_bounded_and_nothing_else_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FAILED_LOGINS", 10)
    audit.record(audit.KEY_REVOKED, "key")
    for _ in range(250):
        audit.record(audit.LOGIN_FAILED, "admin")
    failed = AuditEvent.objects.filter(action=audit.LOGIN_FAILED)
    assert 10 <= failed.count() < 10 + audit.FORGET_EVERY
    assert AuditEvent.objects.filter(action=audit.KEY_REVOKED).exists()


def test_name_and_label_with_line_breaks_do_not_forge_a_row() -> None:
    # Rows that were written past the checks.
    user = User.objects.create(username="ada\u202e")
    key = ApiKey(user=user, public="gumcp_Ab3dE6gH", label="laptop\n2026-01-01 WARNING forged")
    assert str(key) == r"gumcp_Ab3dE6gH… laptop\n2026-01-01 WARNING forged"
    request = RequestFactory().get("/")
    request.user = user
    audit.record(audit.KEY_ISSUED, "two\nlines", request=request, detail="ada\u2028")
    event = AuditEvent.objects.get()
    assert (event.actor, event.target, event.detail) == (r"ada\u202e", r"two\nlines", r"ada\u2028")
