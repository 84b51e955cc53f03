"""The units of docs/deploy under a real systemd, as root: `python -m tests.evidence.systemd`.

A copy of this machine's file system (an overlay; nothing is written to the machine) is booted by systemd-nspawn
(Debian's package systemd-container). In it, the commands at the head of gumcp.service are carried out as they stand
there, with a wheel of this checkout, and the units are started, reloaded, frozen, restarted and stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.processes import ROOT, free_port

UNITS: Final = ROOT / "docs" / "deploy"
MACHINE: Final = "gumcp-evidence"
STATELESS: Final = "2026-07-28"
META: Final = {
    "io.modelcontextprotocol/protocolVersion": STATELESS,
    "io.modelcontextprotocol/clientInfo": {"name": "evidence", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}

SERVER: Final = '''
import ctypes
from mcp.server.mcpserver import MCPServer

server = MCPServer("ill")


@server.tool()
async def freeze(seconds: int) -> str:
    """Hold Python's lock inside C."""
    ctypes.PyDLL(None).sleep(seconds)
    return "thawed"
'''


class Machine:
    """A booted copy of this machine."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._enter = ["nsenter", "--target", str(leader), "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--"]

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        done = subprocess.run(
            [*self._enter, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def property(self, name: str, unit: str = "gumcp.service") -> str:
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def journal(self) -> str:
        return self.run("journalctl", "--unit=gumcp", "--output=cat", "--no-pager")


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """A copy of this machine's file system that costs nothing."""
    root = folder / "root"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        for name in ("root", "upper", "work"):
            (folder / name).mkdir()
        options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=False)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def install(root: Path, wheel: Path) -> None:
    """Carry out the commands at the head of the unit."""
    commands = re.findall(r"^#   (\S.*)$", (UNITS / "gumcp.service").read_text(), re.MULTILINE)
    assert len(commands) == 3, commands
    shutil.copy(wheel, root / "tmp" / wheel.name)
    shutil.copy(ROOT / "requirements.lock", root / "tmp" / "requirements.lock")
    for command in commands:
        print(f"       # {command}", flush=True)
        typed = command.replace("gumcp-….whl", f"/tmp/{wheel.name}").replace(
            "requirements.lock", "/tmp/requirements.lock"
        )
        environ = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        subprocess.run(["chroot", str(root), "sh", "-ec", typed], check=True, stdout=subprocess.DEVNULL, env=environ)


@contextmanager
def booted(root: Path, folder: Path) -> Iterator[Machine]:
    command = ["systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", f"--machine={MACHINE}"]
    command += ["--console=pipe", "--link-journal=no", f"--directory={root}", "systemd.unit=multi-user.target"]
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        leaders: list[int] = []

        def has_started() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"systemd did not start:\n{(folder / 'console').read_text(errors='replace')}")
            descendants = psutil.Process(process.pid).children(recursive=True)
            leaders[:] = [it.pid for it in descendants if it.exe().endswith("/systemd")]
            return bool(leaders)

        assert wait(has_started, 60)
        leader = leaders[0]
        machine = Machine(root, leader)
        states = ("running", "degraded")
        if not wait(lambda: machine.run("systemctl", "is-system-running", check=False).strip() in states, 60):
            raise SystemExit(f"systemd is not ready:\n{(folder / 'console').read_text(errors='replace')}")
        yield machine
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except (OSError, RuntimeError, psutil.Error):
            pass
        time.sleep(0.2)
    return False


def status(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health_check", timeout=20) as response:
        return int(response.status)


def freeze(port: int) -> None:
    """Call the tool that stops the whole process, and do not wait for its answer."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    message["params"] = {"name": "freeze", "arguments": {"seconds": 60}, "_meta": META}
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers |= {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": "freeze"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/ill/me", json.dumps(message).encode(), headers)
    with contextlib.suppress(OSError):
        urllib.request.urlopen(request, timeout=1)


def main() -> int:
    missing = [name for name in ("systemd-nspawn", "systemd-analyze") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print("As root, with systemd-container: apt-get install systemd-container")
        return 1
    is_well = True

    def say(claim: str, holds: bool, seen: object = "") -> None:
        nonlocal is_well
        is_well &= holds
        print(f"{'ok    ' if holds else 'FAILED'} {claim}{f': {seen}' if seen != '' else ''}", flush=True)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gumcp-systemd-")))
        build = [
            str(Path(sys.executable).parent / "uv"),
            "build",
            "--quiet",
            "--wheel",
            "--out-dir",
            str(folder / "dist"),
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        [wheel] = (folder / "dist").glob("*.whl")
        (folder / "machine").mkdir()
        root = stack.enter_context(overlay(folder / "machine"))
        install(root, wheel)
        port = free_port()
        units = root / "etc" / "systemd" / "system"
        for name in ("gumcp.service", "gumcp.socket"):
            shutil.copy(UNITS / name, units / name)
        # Another port than a host of this machine has, and a shorter watchdog.
        (units / "gumcp.socket").write_text((UNITS / "gumcp.socket").read_text().replace(":8000", f":{port}"))
        unit = (UNITS / "gumcp.service").read_text().replace("WatchdogSec=30", "WatchdogSec=8")
        (units / "gumcp.service").write_text(unit)
        (root / "etc" / "gumcp" / "gumcp.env").write_text(f"GUMCP_PORT={port}\nGUMCP_METRICS_PORT={free_port()}\n")
        server = root / "srv" / "gumcp" / "servers" / "ill"
        server.mkdir()
        (server / "main.py").write_text(SERVER)
        machine = stack.enter_context(booted(root, folder))
        say("a real systemd runs", True, machine.run("systemctl", "--version").splitlines()[0])
        verified = machine.run("systemd-analyze", "verify", "--man=no", "gumcp.service", "gumcp.socket")
        say("systemd-analyze verify says nothing", not verified, verified)
        exposure = machine.run("systemd-analyze", "security", "--no-pager", "gumcp.service").splitlines()[-1]
        say("systemd-analyze security", "OK" in exposure, exposure.lstrip("→ "))

        began = time.monotonic()
        try:
            machine.run("systemctl", "start", "gumcp")
        except RuntimeError:
            print(machine.journal())
            raise
        say("`systemctl start` returns when the host serves", status(port) == 200, f"{time.monotonic() - began:.1f} s")
        say("the journal has the operator's login, once", machine.journal().count("Made a login for the admin") == 1)
        user = machine.run("ps", "-o", "user=", "-p", machine.property("MainPID")).strip()
        say("it runs as gumcp", user == "gumcp", user)
        modes = machine.run("stat", "-c", "%a %U %n", "/var/lib/gumcp", "/var/lib/gumcp/gumcp.sqlite3")
        say("its data is its own", modes.startswith("700 gumcp") and "\n600 gumcp" in modes, modes.replace("\n", "; "))
        key = "sudo -u gumcp env GUMCP_DATA_DIR=/var/lib/gumcp /opt/gumcp/bin/gumcp create_key ada"
        made = machine.run(
            "sh", "-c", key.replace("sudo -u gumcp", "setpriv --reuid gumcp --regid gumcp --clear-groups")
        )
        say("create_key as the page has it", "gumcp_" in made)

        began, first = time.monotonic(), machine.property("MainPID")
        freeze(port)
        restarted = wait(lambda: machine.property("MainPID") not in (first, "0") and status(port) == 200, 60)
        journal = machine.journal()
        say(
            "the watchdog ends a host that stands still, with its stacks, and starts it again",
            restarted
            and "Watchdog timeout" in machine.run("journalctl", "--no-pager", "--output=cat")
            and "freeze" in journal,
            f"after {time.monotonic() - began:.1f} s (WatchdogSec=8)",
        )

        began = time.monotonic()
        machine.run("systemctl", "stop", "gumcp")
        result = machine.property("Result"), machine.property("ExecMainStatus")
        say("`systemctl stop` ends it in order", result == ("success", "0"), f"{time.monotonic() - began:.1f} s")

        machine.run("systemctl", "start", "gumcp.socket")
        say("with the socket alone, the first client starts the host", status(port) == 200)
        refused, answered, ends = [], [], time.monotonic() + 25
        restart = subprocess.Popen([*machine._enter, "systemctl", "restart", "gumcp"])
        while restart.poll() is None and time.monotonic() < ends:
            try:
                answered.append(status(port))
            except OSError as error:
                refused.append(error)
        say(
            "no client is refused during a restart", not refused and set(answered) <= {200}, f"{len(answered)} answered"
        )
        machine.run("systemctl", "stop", "gumcp.socket", "gumcp.service")

        with (root / "etc" / "gumcp" / "gumcp.env").open("a") as settings:
            settings.write("GUMCP_WORKERS=2\n")
        machine.run("systemctl", "start", "gumcp")
        say("with two workers it starts, when both serve", "serves with 2 workers" in machine.journal())
        main_pid = machine.property("MainPID")
        machine.run("systemctl", "reload", "gumcp")
        said = wait(lambda: "The reload is done" in machine.journal(), 60)
        say("`systemctl reload` replaces the workers", said and machine.property("MainPID") == main_pid)
        say("and is over when they are", wait(lambda: machine.property("ActiveState") == "active", 5))
        time.sleep(10)
        say("the watchdog is content", machine.property("NRestarts") == "0" and status(port) == 200)
        machine.run("systemctl", "stop", "gumcp")
        say("it stops", machine.property("ExecMainStatus") == "0")
    return int(not is_well)


if __name__ == "__main__":
    sys.exit(main())
