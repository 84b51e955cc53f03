"""How tests, benchmarks and tools start a process of the project, wait for it, and end it.

Needs only the standard library. The two kinds of hosts stand on it: `host_process` runs the project, and
`serving_process` runs our Daphne around an application that misbehaves on request.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.warm_python import WARM_PYTHON, WarmProcess

ROOT: Final = Path(__file__).parents[2]
PLAIN_SERVERS: Final = ROOT / "tests" / "servers" / "plain"
BUNDLED_SERVERS: Final = ROOT / "servers"

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
AnyProcess = subprocess.Popen[Any] | WarmProcess

HOST_COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "daphne": ("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "{application}"),
    "uvicorn": ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "{application}"),
    "serve": ("manage.py", "serve", "--port", "{port}"),
    "prepare": ("manage.py", "serve", "--prepare"),
    "workers": ("manage.py", "serve", "--port", "{port}", "--workers", "2"),
    "reload": ("manage.py", "serve", "--reload", "--port", "{port}"),
}
"""What Python runs to serve the project."""


WARM_MODULES: Final = (("-m", "daphne"), ("-m", "uvicorn"), ("-m", "tests.serving.host"))
"""What `warm_python` starts beside manage.py."""


class ProcessFailed(Exception):
    """A process ended before it was ready, or was not ready in time; the message ends with the end of its log."""


def _ports_of_this_process() -> Iterator[int]:
    """The ports that this process may give to hosts, again and again: a share of 20000 to 31999.

    That is below the range from which the kernel takes ports for outgoing connections: until the host listens, no
    client can get its port. Processes of pytest-xdist have shares of their own, since a port is free until its host
    listens, and two of them could choose it at once.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw15")
    share = range(20_000, 32_000)[int(name.removeprefix("gw")) % 16 :: 16]
    start = secrets.randbelow(len(share))
    return itertools.cycle([*share[start:], *share[:start]])


_ports = _ports_of_this_process()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens, and which this process has not given out lately."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", next(_ports))) as it:
            return int(it.getsockname()[1])


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a host: a data directory of its own and these settings, nothing of the developer's."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("GUMCP_", "DATABASE_", "DJANGO_"))
    }
    return {
        **kept,
        "GUMCP_ENV_FILE": "",
        "GUMCP_DATA_DIR": str(data_dir),
        "DATABASE_URL": f"sqlite:///{data_dir / 'gumcp.sqlite3'}",
        "GUMCP_METRICS_PORT": "0",
        # A call that a test leaves in flight must not delay the end of its host.
        "GUMCP_SHUTDOWN_GRACE_SECONDS": "3",
        "GUMCP_SERVER_DIRS": str(PLAIN_SERVERS),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


def run(*command: str, data_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command at the project's root, in a host's environment, to its end."""
    env = environment(data_dir, **settings)
    if _is_warm(command, env):
        return _run_warm(command, env)
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def _is_warm(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a program can be forked (`warm_python`): a host or a command, if nothing says how Python has to start."""
    known = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    command = tuple(command)
    is_usual = all(name in known or not name.startswith(("PYTHON", "COV")) for name in env)
    # The module `tempfile` reads it once.
    is_usual = is_usual and env.get("TMPDIR") == os.environ.get("TMPDIR")
    is_ours = command[1] == "manage.py" or command[1:3] in WARM_MODULES
    return is_usual and is_ours and command[0] == sys.executable


def _run_warm(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = WARM_PYTHON.start(command[1:], ROOT, env, stdout, stderr)
        try:
            process.wait(START_SECONDS)
        finally:
            process.kill()
            process.wait()
        outputs = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (stdout, stderr))
        return subprocess.CompletedProcess(command, process.wait(), *outputs)


def manage(*arguments: str, data_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a management command to its end."""
    return run(sys.executable, "manage.py", *arguments, data_dir=data_dir, **settings)


def migrate(data_dir: Path) -> None:
    """Make the database of a host.

    :raises ProcessFailed: if the command fails.
    """
    done = manage("migrate", "--verbosity", "0", data_dir=data_dir)
    if done.returncode != 0:
        raise ProcessFailed(f"manage.py migrate failed:\n{done.stderr}")


def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS, pause_seconds: float = 0.02) -> Any:
    """Ask `condition` again and again, and return its first true value, which is promised within `seconds`."""
    end = time.monotonic() + within(seconds)
    while not (value := condition()):
        assert time.monotonic() < end, f"not reached in {within(seconds)} s"
        time.sleep(pause_seconds)
    return value


@contextmanager
def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    is_ready: Callable[[], bool] = lambda: True,
    cwd: Path = ROOT,
    start_seconds: float = START_SECONDS,
    output_file: Path | None = None,
    **options: Any,
) -> Iterator[AnyProcess]:
    """Run Python with `command` for the length of a `with` block, and end it on leaving.

    The body begins when `is_ready` returns true; until then it may raise OSError. The process writes to `log`,
    and its standard output to `output_file` if there is one. On leaving it gets SIGTERM, and SIGKILL if it has not
    ended after `STOP_SECONDS` or if the body failed. `options` are those of `Popen`.

    :raises ProcessFailed: if the process ends before it is ready, or is not ready in time.
    """
    process: AnyProcess
    if not options and cwd == ROOT and _is_warm(command, env):
        for path in {log, output_file or log}:
            path.write_bytes(b"")
        process = WARM_PYTHON.start(command[1:], ROOT, env, output_file or log, log)
    else:
        told = output_file.open("wb") if output_file else contextlib.nullcontext()
        with log.open("wb") as errors, told as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                **{"stdin": subprocess.DEVNULL, "stdout": output or errors, "stderr": errors, **options},
            )
    try:
        _wait_until_ready(process, is_ready, log, start_seconds)
        yield process
        process.terminate()
        process.wait(STOP_SECONDS)
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


def _wait_until_ready(process: AnyProcess, is_ready: Callable[[], bool], log: Path, start_seconds: float) -> None:
    end = time.monotonic() + start_seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ProcessFailed(f"{process.args} exited with {process.returncode}\n{tail(log)}")
        try:
            if is_ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise ProcessFailed(f"{process.args} was not ready within {start_seconds:.0f} s\n{tail(log)}")


def tail(path: Path, lines: int = 25) -> str:
    """Return the last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
