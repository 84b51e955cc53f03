"""The first login to the admin: whose name and password it gets, and what is refused without making one."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError

from gateway.management.first_operator import make_first_operator

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"


@pytest.fixture
def file(tmp_path: Path, settings: Any) -> Path:
    """The password file that the settings name, readable by its owner."""
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o600)
    settings.GUMCP_ADMIN_PASSWORD_FILE = str(path)
    return path


def make() -> str:
    """Make the login, and return what was printed."""
    out = io.StringIO()
    make_first_operator(out.write)
    return out.getvalue()


def test_password_from_the_file_is_the_operators_and_is_shown_nowhere(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    printed = make()
    operator = User.objects.get(is_superuser=True)
    assert operator.username == "operator"
    assert operator.check_password(PASSWORD)
    assert str(file) in printed
    assert "mode" not in printed
    assert PASSWORD not in printed + caplog.text


def test_file_is_not_read_once_there_is_a_superuser(file: Path) -> None:
    make()
    file.unlink()
    assert make() == ""
    assert User.objects.count() == 1


def test_file_that_others_can_read_is_used_with_a_warning(file: Path) -> None:
    file.chmod(0o644)
    assert "can be read by other users of this machine (mode 644)" in make()
    assert User.objects.get().check_password(PASSWORD)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "holds no password"),
        (b"  \n", "holds no password"),
        (b"123456", "too weak: This password is too short."),
        (b"operator", "too weak: The password is too similar to the username."),
        (b"password1234", "too weak: This password is too common."),
        (b"correct horse\nbattery", "must hold one line"),
        (b"correct horse \xff", "must hold a UTF-8 text"),
        (b"x" * 5000, "longer than 4096 bytes"),
    ],
)
def test_file_that_cannot_be_used_is_refused_with_a_sentence_and_makes_nobody(
    content: bytes | None, sentence: str, file: Path
) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(CommandError) as raised:
        make()
    assert sentence in str(raised.value)
    assert "GUMCP_ADMIN_PASSWORD_FILE" in str(raised.value)
    assert "correct horse" not in str(raised.value)
    assert not User.objects.exists()


def test_pipe_is_refused_without_waiting_for_its_writer(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CommandError, match="must name a file"):
        make()


def test_operator_gets_the_name_of_the_setting(file: Path, settings: Any) -> None:
    settings.GUMCP_ADMIN_USER = "ada"
    make()
    assert User.objects.get(is_superuser=True).username == "ada"


@pytest.mark.parametrize(("name", "sentence"), [("ada", "who is a user already"), ("a b", "is not a user name")])
def test_name_that_cannot_be_the_operators_is_refused(name: str, sentence: str, settings: Any) -> None:
    User.objects.create(username="ada")
    settings.GUMCP_ADMIN_USER = name
    with pytest.raises(CommandError, match=sentence):
        make()
    assert not User.objects.filter(is_superuser=True).exists()
