"""One child process: a command that speaks MCP on its standard input and output, under the launcher.

Lives here: starting it with nothing of the host's but an allow-list of variables, its streams, what it writes to
standard error, and its end. Not here: what is said on the streams (`link`), limits and stopping (`launcher`).
"""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.conf import conf
from gateway.printable import printable
from gateway.upstreams.inherited import INHERITED_VARIABLES
from gateway.upstreams.manifest import CommandSource, Limits
from gateway.upstreams.pipes import MAX_LINE_BYTES, MessageReader, MessageWriter, open_reader, open_writer
from gateway.upstreams.placeholders import Caller, render_folder
from gateway.upstreams.secrecy import without_secrets

logger = logging.getLogger(__name__)

LAUNCHER: Final = Path(__file__).with_name("launcher.py")

MAX_STDERR_LINES: Final = 500
"""How many lines of standard error are kept for operators."""

MAX_STDERR_LINE_CHARACTERS: Final = 2000

MAX_LOGGED_LINES: Final = 100
"""How many lines of standard error of one server are logged in a second."""

MAX_STDERR_BYTES: Final = 64 * 1024
"""A line of standard error that is longer is dropped."""

EXIT_SECONDS: Final = 4.0
"""How long to wait for the launcher to stop a tree, with a margin."""

LAST_WORDS_SECONDS: Final = 0.5
"""How long to read the rest of standard error after the end."""


class StderrLines:
    """The last lines that a server's processes wrote to standard error. Written in the lane, read in any thread."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        self._lines: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self._second = 0
        self._logged = 0
        """Lines that were logged in the present second."""

    def add(self, line: str, secrets: tuple[str, ...] = ()) -> None:
        """Keep one line, without secrets and control characters, and log it."""
        text = printable(without_secrets(line[:MAX_STDERR_LINE_CHARACTERS], secrets))
        self._lines.append(text)
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._logged = second, 0
        self._logged += 1
        # Not a warning: healthy servers write there too.
        if self._logged <= MAX_LOGGED_LINES:
            logger.info("Server %s: %s", self._server_name, text)
        elif self._logged == MAX_LOGGED_LINES + 1:
            logger.info("Server %s: more lines of this second are not logged", self._server_name)

    def last(self, count: int) -> list[str]:
        """The newest `count` lines, the oldest of them first."""
        return list(self._lines)[-count:]


class Child:
    """A running process tree. Used in one event loop."""

    reader: MessageReader
    """Messages from the child."""
    writer: MessageWriter
    """Messages to the child."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: int, tell: Callable[[str], object]) -> None:
        self._process = process
        self._control: int | None = control
        self._tell = tell
        self._tasks: list[asyncio.Task[None]] = []
        self._stdin: asyncio.StreamWriter | None = None
        self._read_transports: list[asyncio.ReadTransport] = []

    @classmethod
    async def start(
        cls,
        source: CommandSource,
        caller: Caller,
        tell: Callable[[str], object],
        *,
        secret: str | None = None,
    ) -> "Child":
        """Start the command for one caller. `secret` reaches it on descriptor 3 only.

        `tell` is called with each line that it writes to standard error, and with what the host has to say of it.

        Raises:
            InstanceUnavailable: a placeholder cannot be filled in for this caller.
            OSError: no process can be started.
        """
        task = task_of(source, caller, secret)
        spawning = asyncio.get_running_loop().run_in_executor(None, _spawn, task)
        try:
            process, control = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(_abandon)
            raise
        child = cls(process, control, tell)
        try:
            await child._connect()
        except BaseException:
            child.close()
            raise
        return child

    async def _connect(self) -> None:
        errors, transport = await open_reader(self._process.stderr, MAX_STDERR_BYTES)
        self._read_transports.append(transport)
        self._tasks.append(asyncio.create_task(self._keep_stderr(errors)))
        lines, transport = await open_reader(self._process.stdout, MAX_LINE_BYTES)
        self._read_transports.append(transport)
        self._stdin = await open_writer(self._process.stdin)
        self.reader = MessageReader(lines, self._note_noise, self._stop_for_a_long_line, conf.max_message_values)
        self.writer = MessageWriter(self._stdin)

    def _note_noise(self, text: str) -> None:
        self._tell(f"on standard output, not a message: {text}")

    def _stop_for_a_long_line(self) -> None:
        self._tell(f"gumcp: it wrote a line of over {MAX_LINE_BYTES} bytes and is stopped")
        self.close()

    async def _keep_stderr(self, errors: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await errors.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    self._tell(error.partial.decode("utf-8", "replace"))
                return
            except asyncio.LimitOverrunError as error:
                await errors.readexactly(error.consumed)
                continue
            self._tell(line.decode("utf-8", "replace").rstrip("\r\n"))

    def close(self) -> None:
        """Begin to stop the tree: standard input is closed, and the launcher does the rest."""
        if self._stdin is not None:
            # asyncio's transport of a pipe cannot be aborted twice, nor after its other end has gone.
            if not self._stdin.transport.is_closing():
                self._stdin.transport.abort()
        elif self._process.stdin is not None:
            self._process.stdin.close()
        if self._control is not None:
            os.close(self._control)
            self._control = None

    async def stop(self) -> int | None:
        """Stop the tree and wait for its end. Returns the exit status; None if it did not end in time."""
        self.close()
        try:
            return await asyncio.shield(self.wait(EXIT_SECONDS))
        finally:
            # What it said last is the reason of its end, and may not have been read yet.
            await asyncio.wait(self._tasks, timeout=LAST_WORDS_SECONDS)
            for transport in self._read_transports:
                transport.close()
            for task in self._tasks:
                task.cancel()

    async def wait(self, seconds: float) -> int | None:
        """Wait for the launcher to end. Returns the exit status; None if it did not end in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        delay = 0.005
        # Polled: SIGCHLD belongs to the host's main thread, and a thread for each child costs more.
        while (status := self._process.poll()) is None:
            if asyncio.get_running_loop().time() >= deadline:
                return None
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.1)
        return status

    @property
    def pid(self) -> int:
        """The process id of the launcher."""
        return self._process.pid


def task_of(source: CommandSource, caller: Caller, secret: str | None = None) -> dict[str, Any]:
    """What the launcher is told: the command, its environment and limits, for one caller."""
    environment = {name: value for name, value in os.environ.items() if name in INHERITED_VARIABLES}
    environment |= {name: text.render_local(caller) for name, text in source.env.items()}
    limits: Limits = source.limits
    return {
        "argv": [source.command, *(argument.render_argument(caller) for argument in source.args)],
        "env": environment,
        "cwd": render_folder(source.cwd, caller) if source.cwd is not None else os.getcwd(),
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": limits.cpu_seconds,
        "open_files": limits.open_files,
        "processes": limits.processes,
        "user": source.user,
        "secret": secret,
    }


def _spawn(task: Mapping[str, Any]) -> tuple["subprocess.Popen[bytes]", int]:
    """Start the launcher and tell it what to run. Returns it with the writing end of its control pipe."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), str(read_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[read_end],
            env={},
            start_new_session=True,
            bufsize=0,
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    # Not on the command line, which everybody on the machine can read.
    data = json.dumps(task).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(write_end, data) :]
    return process, write_end


def _abandon(spawning: "asyncio.Future[tuple[subprocess.Popen[bytes], int]]") -> None:
    """Stop a launcher that nobody waits for any more."""
    if not spawning.cancelled() and spawning.exception() is None:
        process, control = spawning.result()
        os.close(control)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
