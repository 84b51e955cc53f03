import re
import string

from gateway.access.keys import KEY_PATTERN, is_well_formed, key_digest, make_key, public_part


def test_new_keys_differ_and_are_well_formed() -> None:
    keys = {make_key().text for _ in range(200)}
    assert len(keys) == 200
    assert all(is_well_formed(key) for key in keys)


def test_key_has_256_random_bits_and_a_form_that_scanners_find() -> None:
    new = make_key()
    assert re.fullmatch(KEY_PATTERN, new.text)
    assert new.text.startswith("gumcp_")
    assert 62**43 > 2**256
    assert public_part(new.text) == new.public
    assert new.text.startswith(f"{new.public}_")
    assert len(new.text) == 64


def test_every_mistyped_character_is_noticed() -> None:
    text = make_key().text
    for position, character in enumerate(text):
        other = "a" if character != "a" else "b"
        assert not is_well_formed(text[:position] + other + text[position + 1 :]), position


def test_other_forms_are_no_keys() -> None:
    key = make_key().text
    for other in (key.upper(), key.lower(), key[:-1], f"{key}0", f" {key}", f"{key}\n", "", "gumcp_", key[6:]):
        assert not is_well_formed(other), other


def test_swapped_neighbours_are_noticed() -> None:
    text = make_key().text
    for position in range(6, len(text) - 1):
        swapped = text[:position] + text[position + 1] + text[position] + text[position + 2 :]
        assert swapped == text or not is_well_formed(swapped)


def test_digest_and_repr_do_not_say_the_key() -> None:
    new = make_key()
    assert len(new.digest) == 32
    assert new.digest == key_digest(new.text)
    assert new.text not in repr(new)
    assert set(new.text) <= set(string.ascii_letters + string.digits + "_")
