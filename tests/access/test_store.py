"""How the rows of keys are read."""

import logging

import pytest
from django.contrib.auth.models import User
from django.test import Client

from gateway.access.models import ApiKey
from gateway.access.store import KeyStore, issue_key

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("name", ["..", "a..b", "messages", "a:b", "a/b"])
def test_key_of_a_user_whose_name_is_no_user_id_is_refused_and_the_log_says_so_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = User.objects.create_user("ada")
    row, new = issue_key(user)
    store = KeyStore()
    assert row.state == "valid"
    User.objects.filter(pk=user.pk).update(username=name)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            looked_up = store.look_up(new.public)
            assert looked_up is not None
            assert (looked_up.is_active, looked_up.servers) == (False, {})
            assert store.read([row.pk]) == {row.pk: looked_up}
    [record] = caplog.records
    assert new.public in record.getMessage()
    assert ApiKey.objects.get().state == "unusable user name or scope"
    User.objects.filter(pk=user.pk).update(username="ada")
    found = store.look_up(new.public)
    assert found is not None
    assert (found.is_active, found.servers) == (True, None)


@pytest.mark.parametrize("scope", [["time"], "", {}])
def test_key_whose_scope_was_written_past_the_admin_is_for_nothing(
    scope: object, client: Client, admin_user: User, caplog: pytest.LogCaptureFixture
) -> None:
    row, new = issue_key(User.objects.create_user("ada"))
    ApiKey.objects.filter(pk=row.pk).update(scope=scope)
    with caplog.at_level(logging.WARNING):
        found = KeyStore().look_up(new.public)
    assert found is not None
    assert (found.is_active, found.servers) == (False, {})
    assert "scope" in caplog.text
    client.force_login(admin_user)
    assert '<td class="field-servers">none</td>' in client.get("/admin/access/apikey/").text
