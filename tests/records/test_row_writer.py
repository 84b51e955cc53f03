"""Rows that a database does not accept."""

from pathlib import Path

import pytest
from django.db import IntegrityError

from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.instances.listings import Listing
from gateway.records import models
from gateway.records.models import HostProcess
from gateway.storable import MAX_TEXT_LENGTH
from tests.support.mirror import Mirror, row

pytestmark = pytest.mark.django_db


def test_texts_that_no_database_takes_cost_no_row() -> None:
    odd = "caf\udce9\0" + "x" * 30_000
    failures = [LoadFailure(f"{name}", Path(f"/srv/{name}"), odd, odd) for name in ("\udce9", "\udcea")]
    mirror = Mirror(Registry(Discovery(list(GatewayConfig.current().registry), failures)))
    session = mirror.open(odd)
    session.note_client("client\0", "\udce9", "\0")
    session.address = session.end_reason = odd
    mirror.learn("workshop", Listing(odd, ("a\0", odd), (odd,), (odd,)))
    mirror.recorder.note_conditions({"workshop": odd})
    mirror.flush()
    failed = models.ServerRecord.objects.filter(status="failed")
    assert {server.folder for server in failed} == {"/srv/\\udce9", "/srv/\\udcea"}
    assert row(session).client_name == "client\\x00"
    rows = [*models.ServerRecord.objects.values(), *models.SessionRecord.objects.values()]
    texts = [text for values in rows for text in values.values() if isinstance(text, str)]
    texts += [name for values in rows for kind in ("tools", "resources", "prompts") for name in values.get(kind, [])]
    for text in texts:
        assert "\0" not in text.encode().decode()
        assert len(text) <= MAX_TEXT_LENGTH
    assert max(len(row(session).user_id), len(row(session).address), len(row(session).end_reason)) == 255
    workshop = models.ServerRecord.objects.get(name="workshop")
    assert (workshop.tools[0], len(workshop.version), len(workshop.condition)) == ("a\\x00", 255, 500)


@pytest.mark.django_db(transaction=True)
def test_row_that_no_database_takes_is_left_out_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror()
    mirror.flush()
    before, odd, after = mirror.open("before"), mirror.open("odd"), mirror.open("after")
    odd.messages_in = 2**70
    mirror.flush()
    odd.note_incoming()
    after.note_incoming()
    mirror.flush()
    assert set(models.SessionRecord.objects.values_list("id", flat=True)) == {before.row_id, after.row_id}
    assert row(after).messages_in == 1
    mirror.close(odd)
    mirror.flush()
    assert caplog.messages == [f"The row of client {odd.row_id} is left out, it cannot be written: OverflowError"]
    assert mirror.recorder.last_error == ""


@pytest.mark.django_db(transaction=True)
def test_rows_that_a_replaced_database_lacks_are_written_again_and_none_is_left_out() -> None:
    mirror = Mirror()
    idle, active = mirror.open("idle"), mirror.open("active")
    mirror.flush()
    HostProcess.objects.all().delete()
    active.note_incoming()
    with pytest.raises(IntegrityError) as caught:
        mirror.flush()
    mirror.recorder._note_failure(caught.value)
    mirror.flush()
    assert set(models.SessionRecord.objects.values_list("id", flat=True)) == {idle.row_id, active.row_id}
