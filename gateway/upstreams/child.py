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
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from gateway.upstreams.manifest import CommandSource, Limits
from gateway.upstreams.placeholders import Caller

logger = logging.getLogger(__name__)

LAUNCHER: Final = Path(__file__).with_name("launcher.py")

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""The longest message of a child. Real results pass asyncio's default of 64 KiB."""

MAX_STDERR_LINES: Final = 500
"""How many lines of standard error are kept for operators."""

MAX_STDERR_LINE_CHARACTERS: Final = 2000

EXIT_SECONDS: Final = 4.0
"""How long the launcher may take to stop a tree, and then some."""

LAST_WORDS_SECONDS: Final = 0.5
"""How long the rest of standard error may take to read after the end."""

INHERITED_VARIABLES: Final = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    }
)
"""What a child gets of the host's environment. Everything else is named in its manifest."""


class StderrLines:
    """The last lines that a server's processes wrote to standard error. Written in the lane, read in any thread."""

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self._redact = redact

    def add(self, line: str) -> None:
        """Keep one line, without secrets and control characters."""
        text = self._redact(line)[:MAX_STDERR_LINE_CHARACTERS]
        self._lines.append("".join(character if character.isprintable() else " " for character in text))

    def last(self, count: int) -> list[str]:
        """The newest `count` lines, the oldest of them first."""
        return list(self._lines)[-count:]


class Child:
    """A running process tree. Used in one event loop."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: int, stderr: StderrLines) -> None:
        self._process = process
        self._control: int | None = control
        self._stderr = stderr
        self._tasks: list[asyncio.Task[None]] = []
        self.reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        self._stdin: asyncio.StreamWriter | None = None
        self._read_transports: list[asyncio.ReadTransport] = []

    @classmethod
    async def start(
        cls,
        source: CommandSource,
        caller: Caller,
        stderr: StderrLines,
        *,
        secret: str | None = None,
    ) -> "Child":
        """Start the command for one caller. `secret` reaches it on descriptor 3 only.

        Raises:
            InstanceUnavailable: a placeholder cannot be filled in for this caller.
            OSError: no process can be started.
        """
        task = task_of(source, caller, secret)
        loop = asyncio.get_running_loop()
        process, control = await loop.run_in_executor(None, _spawn, task)
        child = cls(process, control, stderr)
        try:
            await child._connect()
        except BaseException:
            child.close()
            raise
        return child

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.reader), self._process.stdout
        )
        self._read_transports.append(transport)
        errors = asyncio.StreamReader(limit=64 * 1024)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(errors), self._process.stderr)
        self._read_transports.append(transport)
        writing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, self._process.stdin)
        self._stdin = asyncio.StreamWriter(writing, protocol, None, loop)
        self._tasks.append(loop.create_task(self._keep_stderr(errors)))

    async def _keep_stderr(self, errors: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await errors.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    self._stderr.add(error.partial.decode("utf-8", "replace"))
                return
            except asyncio.LimitOverrunError as error:
                await errors.readexactly(error.consumed)
                continue
            self._stderr.add(line.decode("utf-8", "replace").rstrip("\r\n"))

    async def write(self, data: bytes) -> None:
        """Write to standard input, and wait while the child does not read.

        Raises:
            anyio.BrokenResourceError: the child has gone.
        """
        if self._stdin is None or self._stdin.is_closing():
            raise anyio.BrokenResourceError
        self._stdin.write(data)
        try:
            await self._stdin.drain()
        except OSError:
            raise anyio.BrokenResourceError from None

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
        # Polled: SIGCHLD belongs to the host's main thread, and a thread for each child is dearer.
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
    environment |= {name: text.render(caller) for name, text in source.env.items()}
    limits: Limits = source.limits
    return {
        "argv": [source.command, *(argument.render_argument(caller) for argument in source.args)],
        "env": environment,
        "cwd": source.cwd.render(caller) if source.cwd is not None else os.getcwd(),
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


class ChildReader:
    """The messages of a child, as the SDK's dispatcher reads them. Lines that are not messages go to `on_noise`."""

    def __init__(self, child: Child, on_noise: Callable[[str], object]) -> None:
        self._child = child
        self._on_noise = on_noise

    async def receive(self) -> SessionMessage | Exception:
        """The next message. Raises `anyio.EndOfStream` when the child has closed its output."""
        while True:
            try:
                line = await self._child.reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                raise anyio.EndOfStream from None
            except asyncio.LimitOverrunError:
                self._on_noise(f"gumcp: it wrote a line of over {MAX_LINE_BYTES} bytes and is stopped")
                self._child.close()
                raise anyio.EndOfStream from None
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValidationError:
                text = line[:MAX_STDERR_LINE_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
                if text.strip():
                    self._on_noise(f"on standard output, not a message: {text}")

    async def aclose(self) -> None:
        """Nothing to do: the child is stopped by whoever started it."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class ChildWriter:
    """Writes messages to a child, as the SDK's dispatcher does."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message as one line. Raises `anyio.BrokenResourceError` when the child has gone."""
        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        await self._child.write(text.encode("utf-8", "surrogatepass") + b"\n")

    async def aclose(self) -> None:
        """Nothing to do: the child is stopped by whoever started it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None
