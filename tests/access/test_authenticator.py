"""The authenticator with a store that tests control: what is kept, for how long, and that it fails closed."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FunctionType, ModuleType
from typing import Any

import pytest
from django.db import OperationalError

from gateway.access import authenticator, known_keys
from gateway.access.authenticator import Authenticator
from gateway.access.grants import Grant
from gateway.access.identity import Identity
from gateway.access.key_watch import KeyWatch
from gateway.access.keys import NewKey, make_key
from gateway.access.known_keys import CONFIRMED_SECONDS
from gateway.access.limits import RateLimits
from gateway.conf import Rule
from gateway.exceptions import (
    AuthenticationUnavailable,
    OutOfScope,
    TooManyRequests,
    Unauthenticated,
)
from tests.support.key_rows import Rows


@pytest.fixture
def rows() -> Rows:
    return Rows()


def authenticator_of(rows: Rows, rules: dict[Rule, str] | None = None, **options: Any) -> Authenticator:
    return Authenticator("keys", rows, RateLimits(rules or {}), **options)


async def identify(at: Authenticator, key: NewKey | str, user_id: str = "ada", address: str = "127.0.0.1") -> Identity:
    text = key if isinstance(key, str) else key.text
    return await at.identify([], address, "time", f"{user_id}:{text}")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass for the authenticator."""
    passed = 0.0
    monotonic, now = time.monotonic, time.time

    def pass_time(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr("gateway.access.authenticator.time.monotonic", lambda: monotonic() + passed)
    monkeypatch.setattr("gateway.access.authenticator.time.time", lambda: now() + passed)
    return pass_time


async def test_key_that_was_just_seen_costs_no_look_up(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    identities = [await identify(at, key) for _ in range(100)]
    assert rows.look_ups == 1
    assert {identity.api_key for identity in identities} == {key.text}
    assert len({id(identity.grant) for identity in identities}) == 1


async def test_key_in_use_is_never_looked_up_while_the_watch_confirms_it(
    rows: Rows, later: Callable[[float], None]
) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    watch = KeyWatch(at, rows, at.limits, lambda grants: None)  # type: ignore[arg-type]
    for _ in range(20):
        await identify(at, key)
        later(CONFIRMED_SECONDS / 2)
        watch.refresh()
    assert (rows.look_ups, rows.reads) == (1, 20)


async def test_revoked_key_is_refused_after_two_seconds_though_nothing_tells_of_it(
    rows: Rows, later: Callable[[float], None]
) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    await identify(at, key)
    rows.change(key, is_active=False)
    later(CONFIRMED_SECONDS)
    with pytest.raises(Unauthenticated):
        await identify(at, key)


async def test_watch_reports_revoked_keys_that_have_something_open(rows: Rows) -> None:
    key, other, at = rows.issue("ada"), rows.issue("bob"), authenticator_of(rows)
    revoked: list[Grant] = []
    watch = KeyWatch(at, rows, at.limits, revoked.extend)  # type: ignore[arg-type]
    grant = (await identify(at, key)).grant
    await identify(at, other, "bob")
    assert grant is not None
    closed: list[str] = []
    with grant.closing(lambda: closed.append("stream")):
        rows.change(key, is_active=False)
        watch.refresh()
        assert revoked == [grant]
        grant.close_all()
    assert closed == ["stream"]
    with pytest.raises(Unauthenticated):
        await identify(at, key)
    await identify(at, other, "bob")


async def test_key_whose_row_is_gone_and_key_that_expires_are_revoked(rows: Rows) -> None:
    gone, short = rows.issue("ada"), rows.issue("ada", expires_at=datetime.now(UTC) + timedelta(hours=1))
    at = authenticator_of(rows)
    revoked: list[Grant] = []
    watch = KeyWatch(at, rows, at.limits, revoked.extend)  # type: ignore[arg-type]
    grants = [identity.grant for identity in [await identify(at, gone), await identify(at, short)]]
    for grant in grants:
        assert grant is not None
        grant.sessions = 1
    del rows.facts[gone.public]
    rows.change(short, expires_at=datetime.now(UTC))
    watch.refresh()
    assert revoked == grants
    with pytest.raises(Unauthenticated):
        await identify(at, short)


async def test_changed_scope_holds_for_what_is_open(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    watch = KeyWatch(at, rows, at.limits, lambda grants: None)  # type: ignore[arg-type]
    grant = (await identify(at, key)).grant
    assert grant is not None
    assert grant.allowed_tools("time") is None
    rows.change(key, servers={"time": frozenset({"convert"})})
    watch.refresh()
    assert grant.allowed_tools("time") == {"convert"}
    rows.change(key, servers={"notes": None})
    watch.refresh()
    with pytest.raises(OutOfScope):
        await identify(at, key)


@pytest.mark.parametrize("failure", [OperationalError("locked"), RuntimeError("anything else")])
async def test_failure_of_the_look_up_fails_closed(
    rows: Rows, failure: Exception, later: Callable[[float], None]
) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    await identify(at, key)
    rows.failure = failure
    await identify(at, key)  # confirmed a moment ago
    later(CONFIRMED_SECONDS)
    with pytest.raises(AuthenticationUnavailable):
        await identify(at, key)
    with pytest.raises(AuthenticationUnavailable):
        await identify(at, make_key())
    rows.failure = None
    await identify(at, key)


async def test_look_up_that_takes_too_long_fails_closed(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "LOOK_UP_SECONDS", 0.05)
    key, at = rows.issue("ada"), authenticator_of(rows)
    rows.may_answer.clear()
    try:
        with pytest.raises(AuthenticationUnavailable):
            await identify(at, key)
    finally:
        rows.may_answer.set()


async def test_requests_that_come_together_share_one_look_up(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    rows.may_answer.clear()
    comers = [asyncio.create_task(identify(at, key)) for _ in range(50)]
    await asyncio.sleep(0)
    comers[0].cancel()
    rows.may_answer.set()
    results = await asyncio.gather(*comers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, Identity) for result in results[1:])
    assert rows.look_ups == 1


async def test_too_many_look_ups_at_once_fail_closed(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "MAX_LOOK_UPS", 3)
    at = authenticator_of(rows)
    rows.may_answer.clear()
    comers = [asyncio.create_task(identify(at, make_key())) for _ in range(4)]
    await asyncio.sleep(0)
    rows.may_answer.set()
    results = await asyncio.gather(*comers, return_exceptions=True)
    assert [type(result) for result in results] == [Unauthenticated] * 3 + [AuthenticationUnavailable]


async def test_mistyped_key_is_refused_without_a_look_up(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    mistyped = key.text[:20] + ("a" if key.text[20] != "a" else "b") + key.text[21:]
    with pytest.raises(Unauthenticated):
        await identify(at, mistyped)
    assert rows.look_ups == 0


async def test_failures_are_limited_by_address_and_hurt_nobody_who_has_a_good_key(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows, {"failed keys": "3/hour"})
    await identify(at, key)
    answers = []
    for _ in range(10):
        with pytest.raises((Unauthenticated, TooManyRequests)) as refusal:
            await identify(at, make_key())
        answers.append(refusal.type)
    assert answers == [Unauthenticated] * 3 + [TooManyRequests] * 7
    assert rows.look_ups == 1 + 3
    await identify(at, key)
    # Who was never seen from there waits; from elsewhere they come in.
    late = rows.issue("bob")
    with pytest.raises(TooManyRequests) as refusal:
        await identify(at, late, "bob")
    assert dict(refusal.value.headers)[b"retry-after"].isdigit()
    await identify(at, late, "bob", "192.0.2.7")


async def test_refusals_are_paced_and_nobody_waits_longer_than_half_a_second(
    rows: Rows, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("gateway.access.refusal_pacing.asyncio.sleep", note)
    at = authenticator_of(rows, {"failed keys": "1/hour"})

    async def guess(times: int) -> list[float]:
        """How long each of them waits, if they come in one moment."""
        waits.clear()
        for _ in range(times):
            with pytest.raises((Unauthenticated, TooManyRequests)):
                await identify(at, "mistyped")
        return list(waits)

    started = time.monotonic()
    assert len(await guess(101)) == 100
    waited = await guess(2000)
    # Those who find no turn wait too, as long as the last who has one.
    assert len(waited) == 2000
    assert max(waited) == 0.5
    # Turns that are over make room while the others come.
    turns = sum(wait < 0.5 for wait in waited)
    assert 149 <= turns <= 151 + (time.monotonic() - started) * 500
    # However many there were: the turns did not run ahead.
    later(0.51)
    assert await guess(1) == [0]


async def test_requests_are_limited_by_key_and_by_address(rows: Rows) -> None:
    first, second = rows.issue("ada"), rows.issue("ada")
    at = authenticator_of(rows, {"requests of a key": "2/hour", "requests of an address": "3/hour"})
    await identify(at, first)
    await identify(at, first)
    with pytest.raises(TooManyRequests):
        await identify(at, first)
    with pytest.raises(TooManyRequests):  # the address has had three
        await identify(at, second)
    await identify(at, second, address="192.0.2.7")


async def test_renamed_user_is_found_under_the_new_name_only(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    await identify(at, key)
    rows.change(key, user_id="eve")
    KeyWatch(at, rows, at.limits, lambda grants: None).refresh()  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated):
        await identify(at, key)
    assert (await identify(at, key, "eve")).user_id == "eve"


async def test_keys_are_forgotten_when_unused_and_beyond_a_number(
    rows: Rows, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "MAX_KNOWN_KEYS", 3)
    monkeypatch.setattr(authenticator, "MAX_KNOWN_CALLERS", 3)
    at = authenticator_of(rows)
    for _ in range(5):
        await identify(at, rows.issue("ada"))
    assert len(at._keys._by_digest) == len(at._callers) == 3
    later(known_keys.FORGET_SECONDS + 1)
    at.forget_unused()
    assert not at._keys._by_digest
    assert not at._callers


async def test_hidden_key_is_not_given_to_the_factory_and_still_owns_what_it_opened(rows: Rows) -> None:
    key, second = rows.issue("ada"), rows.issue("ada")
    at = authenticator_of(rows, hides_keys=True)
    identity = await identify(at, key)
    assert identity.api_key is None
    assert identity == await identify(at, key)
    assert identity != await identify(at, second)


async def test_nothing_in_memory_holds_the_text_of_a_hidden_key(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows, hides_keys=True)
    identity = await identify(at, key)
    header = [(b"authorization", f"Bearer {key.text}".encode())]
    assert await at.identify(header, "127.0.0.1", "time", None) == identity
    secret = key.text[len(key.public) + 1 :]
    texts = [found for found in _reachable(at) if isinstance(found, str | bytes)]
    assert key.public in texts
    assert not [text for text in texts if secret in (text if isinstance(text, str) else text.decode("latin-1"))]


def _reachable(root: object) -> list[object]:
    """What can be reached from `root` without passing through modules, classes and functions."""
    found: dict[int, object] = {}
    pending = [root]
    while pending:
        item = pending.pop()
        if id(item) not in found and not isinstance(item, type | ModuleType | FunctionType):
            found[id(item)] = item
            pending += gc.get_referents(item)
    return list(found.values())


async def test_request_without_a_key_does_not_count_as_a_failed_key(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows, {"failed keys": "2/hour"})
    without_key: list[tuple[str | None, bytes | None]] = [
        (None, None),
        ("ada", None),
        ("oauth-protected-resource", None),
        (None, b"Basic YWRhOng="),
        (None, b"Bearer "),
        ("ada", b"Bearer"),
    ]
    for session_key, authorization in without_key * 10:
        headers = [] if authorization is None else [(b"authorization", authorization)]
        with pytest.raises(Unauthenticated):
            await at.identify(headers, "127.0.0.1", "time", session_key)
    await identify(at, key)
    assert not at.limits.take_refusals()


async def test_key_that_is_written_in_many_long_ways_keeps_no_memory_for_their_text(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    tracemalloc.start()
    try:
        for number in range(500):
            header = [(b"authorization", b"Bearer" + b" " * (7000 + number) + key.text.encode())]
            await at.identify(header, "127.0.0.1", "time", None)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(at._callers) == 500
    assert kept < 500 * 1000


async def test_repr_of_an_identity_does_not_say_its_key(rows: Rows) -> None:
    key = rows.issue("ada")
    assert key.text not in repr(await identify(authenticator_of(rows), key))


async def test_open_mode_takes_any_session_key_and_no_header(rows: Rows) -> None:
    at = Authenticator("open", rows, RateLimits({}))
    identity = await at.identify([(b"authorization", b"Bearer x")], "127.0.0.1", "time", "ada:key")
    assert (identity.user_id, identity.api_key, identity.grant) == ("ada", "key", None)
    assert rows.look_ups == 0


async def test_last_uses_are_written_to_the_minute_and_once(rows: Rows) -> None:
    key, at = rows.issue("ada"), authenticator_of(rows)
    watch = KeyWatch(at, rows, at.limits, lambda grants: None)  # type: ignore[arg-type]
    await identify(at, key)
    watch._write_uses()
    assert list(rows.uses) == [1]
    rows.uses.clear()
    await identify(at, key)
    watch._write_uses()
    assert not rows.uses or time.time() % 60 < 2
