"""How the commands that are printed for operators and authors begin."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def this_python() -> str:
    """The interpreter that runs now, as one would type it here: `python` only where that is this one."""
    executable = Path(os.path.abspath(sys.executable))  # not resolved: a venv's is a link to one without its packages
    if shutil.which("python") == str(executable):
        return "python"
    here = Path.cwd()
    return shlex.quote(str(executable.relative_to(here) if executable.is_relative_to(here) else executable))
