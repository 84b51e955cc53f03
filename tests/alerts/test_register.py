"""When alerts begin and end, and to whom messages about them are written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from gateway.access.store import issue_key, revoke_keys
from gateway.alerts import outbox, register
from gateway.alerts.models import Alert, AlertDestination, AlertMessage, AlertNotice
from gateway.alerts.outbox import note_result, take_due, write_messages
from gateway.alerts.register import Register, expiring_keys
from gateway.alerts.troubles import EVENTS, Condition, Troubles, conditions_of

pytestmark = pytest.mark.django_db

FAILED = Condition("server_failed", "notes", "The server notes cannot be loaded.")
OTHER = Condition("server_failed", "time", "The server time cannot be loaded.")
KEY = Condition("key_expires", "gumcp_Ab3dE6gH", "The key expires.")


@pytest.fixture(autouse=True)
def _times(settings: Any) -> None:
    settings.GUMCP_ALERT_AFTER_SECONDS = 10.0
    settings.GUMCP_ALERT_CALM_SECONDS = 60.0
    settings.GUMCP_MAX_ALERTS_PER_HOUR = 3


@pytest.fixture
def pager() -> AlertDestination:
    return AlertDestination.objects.create(name="pager", url="https://example.com/in")


def states() -> list[tuple[str, bool]]:
    return [(alert.subject, alert.ended_at is not None) for alert in Alert.objects.order_by("id")]


def told(destination: AlertDestination) -> list[list[tuple[str, str]]]:
    """What each message to a destination says: state and subject."""
    messages = AlertMessage.objects.filter(destination=destination).order_by("created_at")
    return [[(item["state"], item["subject"]) for item in message.items] for message in messages]


def steps(at: dict[float, Iterable[Condition]], kept: Register | None = None) -> Register:
    """Tell a register what is wrong at which times."""
    kept = kept or Register()
    for now, conditions in at.items():
        kept.update(conditions, now)
    return kept


def test_alert_begins_when_it_has_lasted_and_ends_when_it_has_been_well_for_a_while() -> None:
    kept = steps({0: [FAILED], 9.9: [FAILED]})
    assert states() == []
    steps({10: [FAILED], 20: [FAILED], 21: [], 80.9: []}, kept)
    assert states() == [("notes", False)]
    steps({81: []}, kept)
    assert states() == [("notes", True)]
    assert Alert.objects.get().ending == "The server notes no longer fails to load."


def test_trouble_that_comes_and_goes_is_one_alert() -> None:
    seconds = range(0, 600, 5)
    steps({float(now): [FAILED] if now < 15 or now % 50 else [] for now in seconds})
    assert states() == [("notes", False)]


def test_trouble_that_passes_soon_is_no_alert() -> None:
    steps({0: [FAILED], 5: [], 9: [FAILED], 18: [FAILED]})
    assert states() == []


def test_second_process_that_takes_itself_for_the_lead_begins_no_second_alert() -> None:
    steps({0: [FAILED], 10: [FAILED]})
    Register().begin([FAILED, OTHER])
    assert states() == [("notes", False), ("time", False)]
    with pytest.raises(IntegrityError), transaction.atomic():
        Alert.objects.create(event="server_failed", subject="notes", text="again")


def test_no_more_than_a_thousand_alerts_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "MAX_OPEN", 5)
    conditions = [Condition("key_expires", f"key-{number}", "expires") for number in range(9)]
    steps({0: conditions, 5: conditions})
    assert Alert.objects.count() == 5


def test_key_that_expires_soon_is_told_once_and_its_end_says_why(settings: Any) -> None:
    user = User.objects.create_user("ada")
    soon, later = timezone.now() + timedelta(days=3), timezone.now() + timedelta(days=30)
    keys = {name: issue_key(user, label=name, expires_at=soon)[0] for name in ("one", "two", "three")}
    issue_key(user, expires_at=later)
    issue_key(user)
    kept = steps({0: expiring_keys(), 30: expiring_keys()})
    assert {alert.subject for alert in Alert.objects.all()} == {key.public for key in keys.values()}
    assert f"one of ada expires at {soon:%Y-%m-%d %H:%M} UTC." in Alert.objects.get(subject=keys["one"].public).text
    revoke_keys([keys["one"]])
    for name, moment in (("two", later), ("three", timezone.now())):
        keys[name].expires_at = moment
        keys[name].save()
    steps({60: expiring_keys()}, kept)
    endings = {Alert.objects.get(subject=keys[name].public).ending.split(maxsplit=3)[-1] for name in keys}
    assert endings == {"revoked.", "expires later now.", "expired."}
    settings.GUMCP_ALERT_KEY_DAYS = 0.0
    assert expiring_keys() == []


def test_troubles_of_all_processes_are_put_together() -> None:
    one = Troubles(failed_servers=("notes",), refusals={"rate_limit": 200, "unauthenticated": 10})
    two = Troubles(
        blocked_servers=("time",), database="rows have not been written for 9 s", refusals={"rate_limit": 90}
    )
    stored = [Troubles.from_json(found.to_json()) for found in (one, two)]
    assert stored == [one, two]
    found = {condition.key: condition.text for condition in conditions_of(stored, many_refusals=300)}
    assert found.keys() == {
        ("server_failed", "notes"),
        ("server_blocked", "time"),
        ("host_degraded", "servers"),
        ("host_degraded", "database"),
        ("many_refusals", "host"),
    }
    assert found["host_degraded", "servers"] == "The host is degraded: notes cannot be loaded; time is blocked."
    assert (
        "300 requests were refused within a minute, 290 of them with the reason rate_limit"
        in (found["many_refusals", "host"])
    )
    for limit in (0, 301):
        assert ("many_refusals", "host") not in {each.key for each in conditions_of(stored, many_refusals=limit)}


# -- Messages --------------------------------------------------------------------------------------------------------


def test_destination_hears_once_that_it_begins_and_once_that_it_ends(pager: AlertDestination) -> None:
    kept = steps({0: [FAILED], 10: [FAILED]})
    for _ in range(3):
        write_messages([pager])
    assert told(pager) == [[("begun", "notes")]]
    steps({20: [], 80: []}, kept)
    for _ in range(3):
        write_messages([pager])
    assert told(pager) == [[("begun", "notes")], [("ended", "notes")]]
    item = AlertMessage.objects.order_by("created_at").last()
    assert item is not None
    assert item.items[0]["text"] == "Over: The server notes no longer fails to load."
    assert item.items[0]["id"] == Alert.objects.get().pk


def test_destination_hears_only_what_it_wants_to_hear_and_of_no_trouble_twice(pager: AlertDestination) -> None:
    everything = Troubles(("notes",), ("time",), "rows are late", {"rate_limit": 999})
    conditions = conditions_of([everything], many_refusals=1)
    steps({0: conditions, 10: conditions})
    keys_only = AlertDestination.objects.create(name="keys", url="https://example.com", events=["key_expires"])
    host_only = AlertDestination.objects.create(name="host", url="https://example.com", events=["host_degraded"])
    write_messages([pager, keys_only, host_only])
    assert told(keys_only) == []
    assert told(host_only) == [[("begun", "servers"), ("begun", "database")]]
    assert told(pager) == [[("begun", "host"), ("begun", "notes"), ("begun", "time"), ("begun", "database")]]


def test_beyond_the_limit_alerts_wait_and_are_told_together(pager: AlertDestination) -> None:
    kept = Register()
    for number in range(6):
        kept.begin([Condition("server_failed", f"s{number}", "fails")])
        write_messages([pager])
    assert told(pager) == [[("begun", f"s{number}")] for number in range(3)]
    Alert.objects.filter(subject__in=["s0", "s5"]).update(ended_at=timezone.now())  # s5: nobody was told
    AlertMessage.objects.update(created_at=timezone.now() - timedelta(hours=2))
    write_messages([pager])
    assert sorted(told(pager)[-1]) == [("begun", "s3"), ("begun", "s4"), ("ended", "s0")]


def test_many_alerts_at_once_are_a_few_messages(pager: AlertDestination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_ITEMS", 10)
    conditions = [Condition("key_expires", f"key-{number}", "expires") for number in range(25)]
    steps({0: conditions})
    for _ in range(4):
        write_messages([pager])
    assert [len(items) for items in told(pager)] == [10, 10, 5]


def test_new_destination_hears_of_what_is_open_but_not_of_what_is_over(pager: AlertDestination) -> None:
    kept = steps({0: [FAILED, KEY], 10: [FAILED, KEY], 11: [FAILED]})
    write_messages([AlertDestination.objects.create(name="late", url="https://example.com/late")])
    assert told(AlertDestination.objects.get(name="late")) == [[("begun", "notes")]]
    kept.update([], 12)


def test_message_that_fails_is_tried_again_later_and_holds_back_the_next_one(
    pager: AlertDestination, settings: Any
) -> None:
    Register().begin([FAILED])
    write_messages([pager])
    Register().begin([OTHER])
    write_messages([pager])
    (first,) = take_due((), 8)
    assert take_due((), 8) == []  # this process has it for itself
    note_result(first, "The receiver answered with status 500.")
    assert take_due((), 8) == []
    row = AlertMessage.objects.get(pk=first.message_id)
    assert (row.state, row.attempts) == ("waiting", 1)
    assert 8 < (row.next_attempt_at - timezone.now()).total_seconds() <= outbox.RETRY_SECONDS[0]
    pager.refresh_from_db()
    assert pager.last_error == "The receiver answered with status 500."
    AlertMessage.objects.filter(pk=first.message_id).update(next_attempt_at=timezone.now())
    assert take_due({pager.pk}, 8) == []
    assert take_due((), 0) == []
    (again,) = take_due((), 8)
    assert (again.message_id, again.attempt) == (first.message_id, 2)
    note_result(again, "")
    (second,) = take_due((), 8)
    assert second.items[0]["subject"] == "time"
    settings.GUMCP_ALERT_RETRY_SECONDS = 0.0
    note_result(second, "The receiver refused the connection.")
    assert [message.state for message in AlertMessage.objects.order_by("created_at")] == ["sent", "given up"]
    pager.refresh_from_db()
    assert pager.last_sent_at is not None
    assert pager.last_error == "The receiver refused the connection."


def test_message_of_a_process_that_died_is_sent_by_another_one_with_the_same_id(pager: AlertDestination) -> None:
    Register().begin([FAILED])
    write_messages([pager])
    (lost,) = take_due((), 8)
    AlertMessage.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))  # its time is over
    (again,) = take_due((), 8)
    assert again.message_id == lost.message_id


def test_failed_test_is_not_tried_again(pager: AlertDestination) -> None:
    outbox.write_test(pager)
    (test,) = take_due((), 8)
    assert test.items[0]["state"] == "test"
    note_result(test, "There was no answer within 10 s.")
    assert AlertMessage.objects.get().state == "given up"


def test_disabled_destination_gets_nothing(pager: AlertDestination) -> None:
    outbox.write_test(pager)
    Register().begin([FAILED])
    AlertDestination.objects.update(is_enabled=False)
    write_messages([pager])
    assert take_due((), 8) == []
    assert AlertNotice.objects.count() == 0


def test_old_rows_are_deleted_but_not_what_somebody_is_still_to_hear(pager: AlertDestination) -> None:
    old = timezone.now() - timedelta(days=31)
    Register().begin([FAILED, OTHER, KEY])
    write_messages([pager])
    AlertMessage.objects.update(state="sent", finished_at=old)
    Alert.objects.exclude(subject="time").update(ended_at=old)
    AlertNotice.objects.filter(alert__subject="notes").update(is_end_told=True)
    register.delete_old_rows()
    assert set(Alert.objects.values_list("subject", flat=True)) == {"time", KEY.subject}
    assert not AlertMessage.objects.exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"url": ""}, "begins with https://"),
        ({"url": "ftp://example.com/"}, "begins with https://"),
        ({"url": "https://exa mple.com/"}, "begins with https://"),
        ({"url": "https://[::1/"}, "begins with https://"),
        ({"url": "https://example.com:99999/"}, "begins with https://"),
        ({"url": "https://a:b@example.com/"}, "cannot have a user"),
        ({"url": "http://127.0.0.1:8000/"}, "GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES is false"),
        ({"url": "http://localhost/"}, "GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES is false"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, "GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES is false"),
        ({"url": "http://169.254.169.254/"}, "metadata address, which is refused always"),
        ({"kind": "email", "addresses": " , "}, "at least one e-mail address"),
        ({"kind": "email", "addresses": "a@example.com, b"}, "not an e-mail address"),
        ({"kind": "email", "addresses": "a@example.com\nBcc: b@example.com"}, "not an e-mail address"),
        ({"kind": "email", "addresses": ",".join(f"a{n}@example.com" for n in range(21))}, "20 addresses at most"),
        ({"url": "https://example.com/", "name": "a\u202eb"}, "control or format characters"),
        ({"url": "https://example.com/", "events": ["nothing"]}, "Only these are known"),
        ({"url": "https://example.com/", "events": {"a": 1}}, "Only these are known"),
    ],
)
def test_destination_that_cannot_be_reached_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        AlertDestination(**{"name": "x", **fields}).full_clean()
    assert sentence in " ".join(raised.value.messages)


def test_all_events_have_a_label_and_new_destinations_hear_all() -> None:
    assert AlertDestination().events == list(EVENTS)
    assert all(label for _, label in Alert._meta.get_field("event").choices or [])
