"""Python folders in a process of their own: which interpreter runs one, and the environments of those that have one.

A folder with a `requirements.txt` gets a virtual environment of its own, made by `manage.py prepare_servers` and never
during a request. Its name has a digest of the requirements, so a changed file needs a new environment.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.upstreams.manifest import CommandSource, Limits, ManifestError
from gateway.upstreams.placeholders import Text

REQUIREMENTS: Final = "requirements.txt"
READY: Final = ".ready"
"""The file that says that an environment is complete."""

RUNNER: Final = Path(__file__).with_name("runner.py")
PROJECT_ROOT: Final = Path(__file__).parents[2]
"""Where the package `gateway` is found."""


def isolated_source(
    folder: Path, limits: Limits, env: Mapping[str, Text], environments: Path, *, uses_own_environment: bool
) -> CommandSource:
    """The command that serves a folder in a process of its own, with the variables `env`.

    Raises:
        ManifestError: its environment has not been prepared.
    """
    if uses_own_environment and (folder / REQUIREMENTS).is_file():
        environment = environment_of(folder, environments)
        if not (environment / READY).is_file():
            raise ManifestError(f"Its environment is not prepared. Run `manage.py prepare_servers {folder.name}`.")
        command, arguments = str(environment / "bin" / "python"), ["-P", str(RUNNER), str(folder)]
        variables = dict(env)
    else:
        command, arguments = sys.executable, ["-m", "gateway.isolated", str(folder)]
        variables = {**env, "PYTHONPATH": _literal(str(PROJECT_ROOT))}
    return CommandSource(
        command,
        tuple(_literal(argument) for argument in arguments),
        variables,
        _literal(str(folder)),
        limits,
        is_folder=True,
    )


def environment_of(folder: Path, environments: Path) -> Path:
    """Where the environment of a folder with its present requirements is."""
    content = (folder / REQUIREMENTS).read_bytes()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + b"\0" + content).hexdigest()[:12]
    return environments / f"{folder.name}-{digest}"


def prepare(folder: Path, environments: Path) -> Path:
    """Make the environment of a folder, unless it is there already. Uses `uv` where it is installed.

    Raises:
        subprocess.CalledProcessError: a package could not be installed; `stderr` says why.
    """
    environment = environment_of(folder, environments)
    if (environment / READY).is_file():
        return environment
    shutil.rmtree(environment, ignore_errors=True)
    environments.mkdir(parents=True, exist_ok=True)
    python = str(environment / "bin" / "python")
    requirements = str(folder / REQUIREMENTS)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is not None:
        commands = [
            [uv, "venv", "--python", sys.executable, str(environment)],
            [uv, "pip", "install", "--python", python, "-r", requirements],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(environment)],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements],
        ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True)
    (environment / READY).touch()
    return environment


def _literal(text: str) -> Text:
    return Text(text, (text,), ())
