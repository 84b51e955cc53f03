"""The program of the guard: it kills a host that is frozen and cannot react to a signal.

Run with the standard library alone, in a process of its own, by `gateway.serving.guard`:

    python -I -S guard_process.py HOST_PID SECONDS

On descriptor 0 it has the socket that holds the numbers of the signals that have come. The host takes them out as soon
as it can run Python, so while one stays there, the host is frozen. The host writes to descriptor 3
when it has handled a first signal to stop. Any later signal means: stop at once.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time

STOPPING = (signal.SIGTERM, signal.SIGINT)
SECOND_SIGNAL_SECONDS = 1.0
"""How long a second signal may stay unnoticed."""

DUMP_SECONDS = 0.3
"""How long the host may take to write its stacks."""

LOOK_SECONDS = 0.05
ALIVE_SECONDS = 5.0
"""How often the guard looks whether the host is still there. It also sees the end of the pipe, unless a child of the
host has inherited that."""


def stops_unnoticed(signals: socket.socket) -> int:
    """How many signals to stop have come and were not taken out."""
    with contextlib.suppress(BlockingIOError):
        return sum(number in STOPPING for number in signals.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return 0


def stops_noticed(notices: int) -> int | None:
    """How many signals to stop the host has taken notice of since this was asked last; None once it is gone."""
    with contextlib.suppress(BlockingIOError):
        return len(os.read(notices, 64)) or None
    return 0


def main(host: int, seconds: float) -> None:
    """Watch until the host is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signals, notices = socket.socket(fileno=os.dup(0)), 3
    os.set_blocking(notices, False)
    noticed, since = 0, 0.0
    while os.getppid() == host:
        more = stops_noticed(notices)
        if more is None:
            return
        noticed += more
        unnoticed = stops_unnoticed(signals)
        if not unnoticed:
            since = 0.0
            # The number of any other signal may be there for a moment, hence no endless loop.
            select.select([signals.fileno(), notices], [], [], ALIVE_SECONDS)
            time.sleep(LOOK_SECONDS)
            continue
        since = since or time.monotonic()
        if time.monotonic() - since >= (seconds if noticed + unnoticed == 1 else SECOND_SIGNAL_SECONDS):
            end(host)
            return
        time.sleep(LOOK_SECONDS)


def end(host: int) -> None:
    """End the host, and let it write the stacks of all threads."""
    # What is in its memory must not be written too.
    with contextlib.suppress(AttributeError, OSError):
        resource.prlimit(host, resource.RLIMIT_CORE, (0, 0))
    # The handler is in C.
    os.kill(host, signal.SIGABRT)
    time.sleep(DUMP_SECONDS)
    if os.getppid() == host:
        os.kill(host, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
