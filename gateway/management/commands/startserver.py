"""`manage.py startserver`: writes a small server with tests, a copy of `gateway/server_template`."""

import importlib.util
import os
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

import gateway
from gateway.catalog.names import RESERVED_NAMES, SERVER_NAME
from gateway.conf import conf
from gateway.management.shell import this_command, this_python

TEMPLATE: Final = Path(gateway.__file__).parent / "server_template"
"""A server folder that works as it is. Its name is in its files wherever the new server's name belongs."""


class Command(BaseCommand):
    """Writes the folder and says what to do next. Loads no servers."""

    help = "Write a small, working, tested server to begin with."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the server's name: its folder, and the first part of its URLs")
        parser.add_argument(
            "--directory",
            type=Path,
            help="where the folder is made; by default the first of GUMCP_SERVER_DIRS",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        directory = options["directory"] or _first_server_dir()
        _require_free_name(name, directory)
        folder = directory / name
        test_name = f"test_{re.sub(r'[^A-Za-z0-9]', '_', name)}.py"
        try:
            # Each server's test file has a name of its own: pytest takes two files with one name for one module.
            folder.mkdir(parents=True)
            for source, target in (("main.py", "main.py"), ("test_main.py", test_name), ("pytest.ini", "pytest.ini")):
                text = (TEMPLATE / source).read_text(encoding="utf-8")
                (folder / target).write_text(text.replace(TEMPLATE.name, name), encoding="utf-8")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CommandError(f"Cannot write {folder}: {error.strerror or error}.") from error
        self._say_what_is_next(name, directory, test_name)

    def _say_what_is_next(self, name: str, directory: Path, test_name: str) -> None:
        is_served = directory.resolve() in [path.resolve() for path in conf.server_dirs]
        shown, command = _short(directory), this_command()
        served_with = "" if is_served else f"GUMCP_SERVER_DIRS={directory.resolve()} "
        self.stdout.write(
            f"Made the server {name}:\n"
            f"\n  {shown / name / 'main.py'}  one tool, greet\n  {shown / name / test_name}  its tests\n"
            "\nCall its tool, test it, and serve it, reloading it at every change:\n"
            f"\n  {served_with}{command} call {name} greet name=Ada"
            f"\n  {this_python()} -m pytest {shown / name}"
            f"\n  {served_with}{command} serve --prepare --reload\n"
        )
        if is_served:
            self.stdout.write(f"A host that is running already serves it after `{command} reload`.")
        if importlib.util.find_spec("pytest") is None:
            is_checkout = (TEMPLATE.parents[1] / "Makefile").exists()
            installing = "make dev" if is_checkout else f"{this_python()} -m pip install pytest"
            self.stdout.write(f"pytest is not installed here: `{installing}` installs it.")
        if not is_served:
            self.stdout.write(f"This host does not serve {shown} yet: add it to GUMCP_SERVER_DIRS.")
        self.stdout.write("How servers are written: docs/writing-servers.md")


def _first_server_dir() -> Path:
    if not conf.server_dirs:
        raise CommandError("GUMCP_SERVER_DIRS names no directory. Say with --directory where to make the server.")
    return conf.server_dirs[0]


def _require_free_name(name: str, directory: Path) -> None:
    """Check that a server in `directory` can have this name.

    Raises:
        CommandError: it cannot. The message says why.
    """
    if name in RESERVED_NAMES:
        raise CommandError(f"The name {name} is reserved for the host's own pages. Choose another.")
    if not SERVER_NAME.fullmatch(name):
        raise CommandError(
            f"{name!r} cannot be a server's name. A name has letters and digits, after the first character also "
            ". _ and -, and at most 100 characters."
        )
    for other in dict.fromkeys([directory, *conf.server_dirs]):
        if os.path.lexists(other / name):
            raise CommandError(f"The name {name} is taken by {_short(other / name)}. Choose another.")


def _short(path: Path) -> Path:
    """Return `path` as it is typed in the current folder."""
    resolved, here = path.resolve(), Path.cwd()
    return resolved.relative_to(here) if resolved.is_relative_to(here) else resolved
