"""The beginning of commands that are printed for operators and authors to copy."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def this_python() -> str:
    """Return this interpreter as it is typed in the current folder: `python` only if the shell finds this one."""
    # Not resolved: in a virtual environment it is a link to an interpreter without the environment's packages.
    executable = Path(os.path.abspath(sys.executable))
    if shutil.which("python") == str(executable):
        return "python"
    here = Path.cwd()
    return shlex.quote(str(executable.relative_to(here) if executable.is_relative_to(here) else executable))
