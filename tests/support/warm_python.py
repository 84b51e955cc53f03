"""Starts host processes faster: they are forked from one that has imported what they need already.

Importing the SDK, Django and the project is most of a host's start, and the suite starts hundreds of hosts. What is
forked has read no settings, and is a process of its own with its own output, environment and descriptors. Tests of what
an interpreter does when it starts use `subprocess` instead.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SERVER: Final = Path(__file__).with_name("warm_server.py")


class WarmProcess:
    """A running program. It has those parts of `subprocess.Popen` that tests use. Any thread may use it."""

    def __init__(self, python: WarmPython, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._python = python
        self._descriptor = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status as `Popen` does, or None while the program runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the program, and return its exit status."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return None
        with self._lock:
            # The status of a process can be asked for once.
            if self.returncode is None:
                self.returncode = self._python.ask({"ended": self.pid})
        return self.returncode


class WarmPython:
    """The process that programs are forked from. It is started by the first program, and ends with this process."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def start(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> WarmProcess:
        """Start `python WORDS…` in `folder`. It adds its output to the files `stdout` and `stderr`."""
        request = {
            "words": [*words],
            "folder": str(folder.resolve()),
            "environment": {**environment},
            "outputs": [str(stdout.resolve()), str(stderr.resolve())],
        }
        return WarmProcess(self, self.ask(request), [sys.executable, *words])

    def ask(self, request: Mapping[str, object]) -> int:
        """Return the server's answer."""
        with self._lock:
            channel = self._channel = self._channel or self._start_server()
            channel.send(json.dumps(request).encode())
            return int(json.loads(channel.recv(100)))

    def _start_server(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, str(SERVER), str(theirs.fileno())]
            server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        # It ends when our end of the pair is closed, also if this process is killed.
        atexit.register(server.wait)
        atexit.register(ours.close)
        return ours


WARM_PYTHON: Final = WarmPython()
