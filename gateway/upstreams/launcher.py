"""Runs one command, keeps its process tree within limits, and leaves nothing of it behind.

This file is executed as a script, `python -I -S launcher.py FD`, with the standard library only. It stays as the parent
of the command. FD is the reading end of a pipe from the host: its first line is a JSON object with what to run; when it
ends, by the host's wish or because the host died, the tree is stopped.

It makes itself a subreaper, so that processes whose parent died become its children, whatever process group or session
they have put themselves into. So "everything below this process" is the whole tree.

Exit status: the command's; 128 + N where signal N ended it; 126 or 127 where it could not be executed; 125 where it
was stopped for a limit. Reasons are written to standard error, each line beginning with `gumcp: `.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1

CLOSE_SECONDS = 0.7
"""How long the command may take to end by itself when its standard input has been closed."""

TERM_SECONDS = 1.0
"""How long the tree may take to end after SIGTERM."""

LONGEST_WATCH_SECONDS = 0.25
SHORTEST_WATCH_SECONDS = 0.01
"""How often memory and the number of processes are looked at, where they are limited: the fuller, the more often."""

GROWTH_BYTES_PER_SECOND = 2 << 30
"""How quickly a process may fill memory, at the most."""

ADDRESS_FACTOR = 2
"""How much more memory than it may use a process may reserve: runtimes reserve what they never touch."""

STOPPED_FOR_A_LIMIT = 125
"""Exit status of this process when it stopped the command for a limit."""


def say(text: str) -> None:
    """Tell the operator something."""
    os.write(2, ("gumcp: " + text + "\n").encode("utf-8", "replace"))


def read_task(fd: int) -> dict[str, Any]:
    """The first line of the pipe, as JSON."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(fd, 65536)
        if not chunk:
            raise SystemExit(0)  # the host went away before it said what to run
        data += chunk
    task: dict[str, Any] = json.loads(data)
    return task


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Become the command. Raises OSError."""
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        if "/" in argv[0]:
            raise
        # The error itself names the last folder of PATH only.
        raise FileNotFoundError(f"{argv[0]} was not found in PATH ({env.get('PATH', '')})") from None


def start(task: dict[str, Any]) -> int:
    """Start the command in a session of its own. Returns its process id."""
    secret_fd = None
    if task.get("secret") is not None:
        secret_fd, write_fd = os.pipe()
        os.write(write_fd, task["secret"].encode("utf-8"))
        os.close(write_fd)
    failed_read, failed_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(failed_read)
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            limit(resource.RLIMIT_DATA, ADDRESS_FACTOR * task["memory_bytes"] if task.get("memory_bytes") else None)
            limit_processor_time(task.get("cpu_seconds"))
            limit(resource.RLIMIT_NOFILE, task.get("open_files"))
            limit(resource.RLIMIT_CORE, 0)
            if task.get("user"):
                become(task["user"])
            os.chdir(task["cwd"])
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if secret_fd is not None:
                os.dup2(secret_fd, 3)
                if secret_fd != 3:
                    os.close(secret_fd)
                os.set_inheritable(3, True)
            execute(task["argv"], task["env"])
        except (OSError, ValueError, KeyError) as error:
            os.write(failed_write, json.dumps([type(error).__name__, str(error)]).encode())
        finally:
            os._exit(127)
    os.close(failed_write)
    if secret_fd is not None:
        os.close(secret_fd)
    failure = os.read(failed_read, 65536)
    os.close(failed_read)
    if failure:
        _, text = json.loads(failure)
        say("cannot start: " + text)
        os.waitpid(pid, 0)
        raise SystemExit(127)
    return pid


def limit(which: int, value: int | None) -> None:
    """Set one resource limit, never above the one that is in force."""
    if value is None:
        return
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def limit_processor_time(seconds: int | None) -> None:
    """SIGXCPU at the limit, which tells it from other ends; SIGKILL a second later."""
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def become(name: str) -> None:
    """Run as another user."""
    import pwd

    entry = pwd.getpwnam(name)
    os.initgroups(name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def descendants() -> list[int]:
    """The ids of all processes below this one."""
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        pid = queue.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                    children = [int(child) for child in file.read().split()]
            except OSError:
                continue
            found += children
            queue += children
    return found


def resident_bytes(pids: list[int]) -> int:
    """How much memory these processes have, files that they map left out."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                fields = file.read().split()
        except OSError:
            continue
        total += (int(fields[1]) - int(fields[2])) * page
    return total


def look(task: dict[str, Any]) -> tuple[str | None, float]:
    """The reason to stop the tree, or None; and after how many seconds to look again."""
    memory, processes = task.get("memory_bytes"), task.get("processes")
    pids = descendants()
    if processes is not None and len(pids) > processes:
        return f"stopped: it has {len(pids)} processes, and may have {processes}", 0.0
    if memory is None:
        return None, LONGEST_WATCH_SECONDS
    used = resident_bytes(pids)
    if used > memory:
        return f"stopped: it uses {used >> 20} MiB of memory, and may use {memory >> 20}", 0.0
    seconds = (memory - used) / GROWTH_BYTES_PER_SECOND
    return None, min(max(seconds, SHORTEST_WATCH_SECONDS), LONGEST_WATCH_SECONDS)


def reap(main: int) -> int | None:
    """Collect what has ended. Returns the wait status of `main` if it is among it."""
    status = None
    while True:
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main:
            status = found


def end_tree(main: int, seconds: float) -> int | None:
    """Stop everything below this process: SIGTERM, a while, SIGKILL. Returns the wait status of `main`, if it ended."""
    status = None
    for sent, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + wait
        while True:
            pids = descendants()
            if not pids:
                return status
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, sent)
            found = reap(main)
            status = found if found is not None else status
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
    return status


def exit_status(status: int) -> int:
    """The exit status that says what a wait status says."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    """Run the command until it ends, a limit is reached, or the host is done with it."""
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    task = read_task(control)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pid = start(task)
    # The command alone holds these from now on: the host sees its end of output, and it sees the host's end of input.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    is_watching = task.get("memory_bytes") is not None or task.get("processes") is not None
    close_deadline = None
    watch_seconds = SHORTEST_WATCH_SECONDS
    while True:
        wait = watch_seconds if is_watching else None
        if close_deadline is not None:
            wait = max(0.0, close_deadline - time.monotonic())
        watched = [wake_read] if close_deadline is not None else [wake_read, control]
        ready, _, _ = select.select(watched, [], [], wait)
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        status = reap(pid)
        if status is not None:
            end_tree(pid, TERM_SECONDS / 2)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                say(f"stopped: it has used {task.get('cpu_seconds')} seconds of processor time, as many as it may")
            raise SystemExit(exit_status(status))
        if control in ready and not os.read(control, 65536):
            # The host has closed the command's standard input before, or has died.
            close_deadline = time.monotonic() + CLOSE_SECONDS
        if close_deadline is not None and time.monotonic() >= close_deadline:
            status = end_tree(pid, TERM_SECONDS)
            raise SystemExit(exit_status(status) if status is not None else 0)
        reason, watch_seconds = look(task) if is_watching else (None, 0.0)
        if reason is not None:
            say(reason)
            end_tree(pid, 0.0)
            raise SystemExit(STOPPED_FOR_A_LIMIT)


if __name__ == "__main__":
    main()
