"""The first login to the admin, which `manage.py serve --prepare` makes while the database has no superuser.

Its password comes from the file that `GUMCP_ADMIN_PASSWORD_FILE` names. Without such a file a random one is printed,
once. The text of a password from a file is never printed, logged or part of an error.
"""

import itertools
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import IntegrityError, transaction
from django.utils.crypto import get_random_string

from gateway.conf import GatewaySettings, conf

RANDOM_LENGTH: Final = 20

MAX_FILE_BYTES: Final = 4096

_FILE: Final = GatewaySettings.declared()["GUMCP_ADMIN_PASSWORD_FILE"].name
_NAME: Final = GatewaySettings.declared()["GUMCP_ADMIN_USER"].name


def make_first_operator(write: Callable[[str], object]) -> None:
    """Make a superuser if there is none. `write` shows a line to whoever starts the host.

    Raises:
        CommandError: the settings of the first login cannot be used. No user is made then.
    """
    users = get_user_model()
    if users.objects.filter(is_superuser=True).exists():
        return
    name = _usable_name()
    password = _password_from_file(name, write) if conf.admin_password_file else get_random_string(RANDOM_LENGTH)
    try:
        with transaction.atomic():
            users.objects.create_superuser(name, password=password)
    except IntegrityError:
        if users.objects.filter(is_superuser=True).exists():
            return  # another machine of this database has made it at the same moment
        raise
    if conf.admin_password_file:
        write(f"\nMade the login {name} for the admin, with the password in {conf.admin_password_file} ({_FILE}).")
    else:
        write(f"\nMade a login for the admin. It is shown only now:\n    name      {name}\n    password  {password}")


def _usable_name() -> str:
    """A name that nobody has: a user who only calls servers must not become an operator."""
    wanted = conf.admin_user
    try:
        User(username=wanted).clean_fields(exclude=["password"])
    except ValidationError as error:
        raise CommandError(f"{_NAME} is not a user name: {' '.join(error.messages)}") from None
    users = get_user_model()
    is_default = wanted == GatewaySettings.declared()[_NAME].default
    if not is_default and users.objects.filter(username=wanted).exists():
        raise CommandError(
            f"{_NAME} names {wanted}, who is a user already and not a superuser. Choose another name, or make one with "
            "`manage.py createsuperuser`."
        )
    return next(name for name in _names(wanted) if not users.objects.filter(username=name).exists())


def _names(wanted: str) -> Iterator[str]:
    """The wanted name, and others in case somebody has it, such as a caller made by `create_key operator`."""
    return itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))


def _password_from_file(name: str, write: Callable[[str], object]) -> str:
    path = settings.BASE_DIR / Path(conf.admin_password_file).expanduser()
    try:
        # Checked first: opening a pipe waits for its writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise CommandError(f"{_FILE} must name a file; {path} is not one.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{_FILE} cannot be read: {error.strerror} ({path}). No login was made.") from None
    if len(content) > MAX_FILE_BYTES:
        raise CommandError(f"{_FILE} must hold one password; {path} is longer than {MAX_FILE_BYTES} bytes.")
    try:
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise CommandError(f"{_FILE} must hold a UTF-8 text; {path} does not.") from None
    if not password.strip():
        raise CommandError(f"{_FILE} holds no password: {path} is empty. No login was made.")
    if not password.isprintable():
        raise CommandError(f"{_FILE} must hold one line; {path} has line breaks or control characters in it.")
    try:
        validate_password(password, User(username=name))
    except ValidationError as error:
        raise CommandError(
            f"The password in {path} ({_FILE}) is too weak: {' '.join(error.messages)} No login was made."
        ) from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        write(
            f"{path} ({_FILE}) can be read by other users of this machine (mode {stat.S_IMODE(mode):o}). It is "
            "used all the same; `chmod 600` keeps it to its owner."
        )
    return password
