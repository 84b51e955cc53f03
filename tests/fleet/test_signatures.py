"""Requests between nodes: believed if another node has signed them, now and once."""

import pytest

from gateway.fleet.signatures import BadSignature, Signatures

PARTS = (b"POST", b"/notes/ada", b"10.0.0.9 4711", b"https", b"notes/key")


def test_signature_of_another_node_with_the_same_secret_is_believed_once() -> None:
    here, there = Signatures("secret"), Signatures("secret")
    signature = there.sign(*PARTS)
    here.check(signature, *PARTS)
    here.use(signature)
    with pytest.raises(BadSignature, match="used before"):
        here.use(signature)


@pytest.mark.parametrize("position", range(len(PARTS)))
def test_signature_of_another_request_is_refused(position: int) -> None:
    signatures = Signatures("secret")
    parts = list(PARTS)
    parts[position] += b"x"
    with pytest.raises(BadSignature, match="does not belong"):
        signatures.check(signatures.sign(*PARTS), *parts)


def test_parts_cannot_run_into_each_other() -> None:
    signatures = Signatures("secret")
    with pytest.raises(BadSignature):
        signatures.check(signatures.sign(b"ab", b"c"), b"a", b"bc")


def test_signature_by_another_secret_is_refused() -> None:
    with pytest.raises(BadSignature, match="does not belong"):
        Signatures("secret").check(Signatures("other").sign(*PARTS), *PARTS)


@pytest.mark.parametrize("seconds", [-31, 31])
def test_signature_of_another_time_is_refused(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = Signatures("secret")
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    signature = signatures.sign(*PARTS)
    now += seconds
    with pytest.raises(BadSignature, match="too old"):
        signatures.check(signature, *PARTS)


@pytest.mark.parametrize("signature", [b"", b"1 2", b"a b c", b"1 2 3 4", b"9" * 400 + b" b c"])
def test_malformed_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(BadSignature):
        Signatures("secret").check(signature, *PARTS)


def test_signature_stays_used_for_as_long_as_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    signatures = Signatures("secret")
    signatures.use(signatures.sign(*PARTS))
    now += 59
    signature = signatures.sign(*PARTS)
    signatures.use(signature)
    for _ in range(6):
        with pytest.raises(BadSignature):
            signatures.use(signature)
        now += 10
    now += 120
    signatures.use(signatures.sign(*PARTS))
    now += 120
    signatures.use(signature)
