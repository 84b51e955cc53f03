"""Session ids: whose they are can be told without a look-up."""

import pytest

from gateway.access.identity import Identity
from gateway.access.session_ids import SessionIds

IDS = SessionIds(["secret"])
ADA = Identity("ada", "key")


def test_id_is_genuine_for_its_caller_on_its_server_only() -> None:
    session_id = IDS.new("workshop", ADA)
    assert IDS.is_genuine(session_id, "workshop", ADA)
    for server_name, identity in (
        ("other", ADA),
        ("workshop", Identity("bob", "key")),
        ("workshop", Identity("ada", "another")),
        ("workshop", Identity("ada")),
        ("workshop", Identity("adak", "ey")),
        ("workshop", Identity("ada", None, key_digest=b"key2")),
    ):
        assert not IDS.is_genuine(session_id, server_name, identity)


@pytest.mark.parametrize("change", [lambda i: "0" * 64, lambda i: i[:-1], lambda i: i + "0", lambda i: i.upper() + "é"])
def test_forged_id_is_not_genuine(change: "object") -> None:
    assert callable(change)
    assert not IDS.is_genuine(change(IDS.new("workshop", ADA)), "workshop", ADA)


def test_ids_differ_and_say_nothing() -> None:
    ids = {IDS.new("workshop", ADA) for _ in range(100)}
    assert len(ids) == 100
    assert all(len(session_id) == 64 and session_id.isalnum() for session_id in ids)


def test_ids_and_digests_of_an_old_secret_key_are_good_after_a_change() -> None:
    renewed, stranger = SessionIds(["new", "secret"]), SessionIds(["new"])
    session_id = IDS.new("workshop", ADA)
    assert renewed.is_genuine(session_id, "workshop", ADA)
    assert not stranger.is_genuine(session_id, "workshop", ADA)
    assert IDS.id_digests(session_id)[0] in renewed.id_digests(session_id)
    assert IDS.caller_digests("workshop", ADA, "")[0] in renewed.caller_digests("workshop", ADA, "")


def test_hidden_key_tells_callers_apart_as_a_shown_one_does() -> None:
    hidden = Identity("ada", None, key_digest=b"digest")
    shown = Identity("ada", "text", key_digest=b"digest")
    assert IDS.is_genuine(IDS.new("workshop", hidden), "workshop", shown)
