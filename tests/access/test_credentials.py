"""What a request presents as a key."""

import pytest

from gateway.access.credentials import Credentials, NoKey, UnusableKey, authorization_header, read_credentials


@pytest.mark.parametrize(
    ("session_key", "authorization", "presented"),
    [
        (None, b"Bearer k", Credentials("k")),
        (None, b"bearer  k ", Credentials("k")),
        ("ada", b"Bearer k", Credentials("k", "ada")),
        ("ada:k", None, Credentials("k", "ada")),
        ("ada%3Ak:l", None, Credentials("k:l", "ada")),
        ("ada:k", b"Bearer k", Credentials("k", "ada")),
    ],
)
def test_key_is_read_from_the_path_and_the_header(
    session_key: str | None, authorization: bytes | None, presented: Credentials
) -> None:
    assert read_credentials(session_key, authorization) == presented


@pytest.mark.parametrize(
    ("session_key", "authorization"),
    [(None, None), ("ada", None), ("ada:", None), (None, b"Basic eA=="), (None, b"Bearer "), ("ada:k", b"Basic eA==")],
)
def test_request_without_a_usable_header_has_no_key(session_key: str | None, authorization: bytes | None) -> None:
    with pytest.raises(NoKey):
        read_credentials(session_key, authorization)


@pytest.mark.parametrize(
    ("session_key", "authorization"),
    [("ada:k", b"Bearer l"), ("%ff:k", None), ("..:k", b"Bearer k"), (":k", None), ("ada:k%0A", None)],
)
def test_malformed_path_or_two_keys_are_not_usable(session_key: str | None, authorization: bytes | None) -> None:
    with pytest.raises(UnusableKey):
        read_credentials(session_key, authorization)


def test_several_headers_are_not_a_valid_key() -> None:
    headers = [(b"authorization", b"Bearer k"), (b"accept", b"*/*"), (b"authorization", b"Bearer l")]
    assert authorization_header(headers) == b"Bearer k, Bearer l"
    assert authorization_header([(b"accept", b"*/*")]) is None


def test_repr_does_not_contain_the_key() -> None:
    assert "secret" not in repr(Credentials("secret", "ada"))
