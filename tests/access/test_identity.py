import pytest

from gateway.access.identity import (
    MAX_SESSION_KEY_BYTES,
    MAX_USER_ID_LENGTH,
    Identity,
    parse_session_key,
    parse_user_id,
)
from gateway.exceptions import InvalidSessionKey


@pytest.mark.parametrize(
    ("segment", "user_id", "api_key"),
    [
        ("ada", "ada", None),
        ("ada:key", "ada", "key"),
        ("ada%3Akey", "ada", "key"),
        ("ada%3akey", "ada", "key"),
        ("ada:", "ada", None),
        ("ada:one:two:three", "ada", "one:two:three"),
        ("ada%3Aone:two", "ada", "one:two"),
        ("ada:one%2Ftwo", "ada", "one/two"),
        ("ada:..%2F..%5C", "ada", "../..\\"),
        ("ada:a%20b", "ada", "a b"),
        ("ada:a+b", "ada", "a+b"),
        ("ada:100%25", "ada", "100%"),
        ("ada:%2541", "ada", "%41"),
        ("j%C3%BCrgen:schl%C3%BCssel", "jürgen", "schlüssel"),
        ("%F0%9F%90%8D", "🐍", None),
        ("ada@example.com", "ada@example.com", None),
        ("a.b", "a.b", None),
        ("ada:\u00c3\u00a9", "ada", "é"),
    ],
)
def test_session_key_is_split_at_its_first_colon_after_decoding(
    segment: str, user_id: str, api_key: str | None
) -> None:
    assert parse_session_key(segment) == Identity(user_id, api_key)


@pytest.mark.parametrize(
    "segment",
    [
        pytest.param("", id="empty"),
        pytest.param(":key", id="no user id"),
        pytest.param("%3Akey", id="no user id, encoded colon"),
        pytest.param("%20:key", id="blank user id"),
        pytest.param("%ff", id="invalid utf-8"),
        pytest.param("ada:%fe", id="invalid utf-8 in the key"),
        pytest.param("%c0%af", id="overlong slash"),
        pytest.param("%ed%a0%80", id="surrogate"),
        pytest.param("\u00ff", id="invalid utf-8 that was not encoded"),
        pytest.param("ada:%00", id="null"),
        pytest.param("ada%0Aset", id="line break"),
        pytest.param("ada:k%0D%0Aset-cookie", id="header injection"),
        pytest.param("ada%7F", id="delete"),
        pytest.param("ada%C2%85", id="next line of C1"),
        pytest.param("ada%E2%80%A8set", id="line separator"),
        pytest.param("ada%E2%80%AEada", id="right-to-left override"),
        pytest.param("ada%E2%80%8B", id="zero width space"),
        pytest.param("%", id="percent alone"),
        pytest.param("ada%4", id="percent with one digit"),
        pytest.param("ada%zz", id="percent with no digits"),
        pytest.param("ada%+1", id="percent with a sign"),
        pytest.param(".", id="dot"),
        pytest.param("..", id="two dots"),
        pytest.param("%2e%2e", id="two encoded dots"),
        pytest.param("a..b", id="two dots inside"),
        pytest.param("..%2Fetc", id="parent path"),
        pytest.param("a%2Fb", id="slash"),
        pytest.param("a%5Cb", id="backslash"),
        pytest.param("a\\b", id="backslash as it is"),
        pytest.param("a" * (MAX_USER_ID_LENGTH + 1), id="long user id"),
        pytest.param("ada:" + "k" * MAX_SESSION_KEY_BYTES, id="long key"),
    ],
)
def test_session_key_that_names_no_user_is_invalid(segment: str) -> None:
    with pytest.raises(InvalidSessionKey):
        parse_session_key(segment)


def test_longest_user_id_is_taken() -> None:
    assert parse_session_key("a" * MAX_USER_ID_LENGTH).user_id == "a" * MAX_USER_ID_LENGTH


def test_error_about_a_session_key_does_not_repeat_it() -> None:
    with pytest.raises(InvalidSessionKey) as error:
        parse_session_key("../canary:canary")
    assert "canary" not in str(error.value)
    assert error.value.__cause__ is None


def test_key_is_absent_from_the_repr_of_an_identity() -> None:
    assert "secret" not in repr(Identity("ada", "secret"))


def test_identities_differ_by_user_id_and_by_key() -> None:
    assert len({Identity("ada", "a"), Identity("ada", "b"), Identity("ada"), Identity("bob", "a")}) == 4


def test_user_id_of_the_command_line_follows_the_same_rules() -> None:
    assert parse_user_id("ada") == "ada"
    assert parse_user_id("ada\u00a0lovelace") == "ada\u00a0lovelace"
    for user_id in ("../ada", "ada\nset", "ada\0", "ada\x7f", "ada\x85", "ada\udcff"):
        with pytest.raises(InvalidSessionKey):
            parse_user_id(user_id)
