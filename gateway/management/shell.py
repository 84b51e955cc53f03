"""The beginning of commands that are printed for operators and authors to copy."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def this_command() -> str:
    """Return how this host's commands begin: `python manage.py`, or `gumcp` where the package is installed."""
    program = Path(sys.argv[0])
    if program.name != "gumcp":
        return f"{this_python()} manage.py"
    return "gumcp" if shutil.which("gumcp") == os.path.abspath(program) else _as_typed(program)


def this_python() -> str:
    """Return this interpreter as it is typed in the current folder: `python` only if the shell finds this one."""
    # Not resolved: in a virtual environment it is a link to an interpreter without the environment's packages.
    executable = Path(os.path.abspath(sys.executable))
    if shutil.which("python") == str(executable):
        return "python"
    return _as_typed(executable)


def _as_typed(program: Path) -> str:
    path, here = Path(os.path.abspath(program)), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
