"""The image of the Dockerfile, built and run for real without Docker and without an image registry, as root:

    python -m tests.evidence.container [--keep FOLDER]

podman builds it (Debian's packages podman, runc and netavark). The image that it begins with, `python:3.13-slim`, is
made here of Debian 13's own packages with debootstrap. The container has no network, a read-only root file system and
no capabilities, as in compose.yaml; what it is asked is asked from inside. Nothing is left behind; FOLDER keeps the
base for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from gateway import __version__
from tests.support.processes import ROOT

BASE: Final = "docker.io/library/python:3.13-slim"
IMAGE: Final = "localhost/gumcp:evidence"
NAME: Final = "gumcp-evidence"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")

ASK: Final = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
"""

CALL: Final = """
import asyncio, sys
from mcp.client import Client

async def main(key, seconds):
    async with Client(f"http://127.0.0.1:8000/slow/ada:{key}") as client:
        # Otherwise it would ask for the tool's schema after the call, when the port is closed.
        await client.list_tools()
        print((await client.call_tool("wait", {"seconds": float(seconds)})).content[0].text)

asyncio.run(main(*sys.argv[1:]))
"""

SERVER: Final = """
import asyncio
from pathlib import Path
from mcp.server.mcpserver import MCPServer

server = MCPServer("slow")


@server.tool()
async def wait(seconds: float) -> str:
    Path("/tmp/called").touch()
    await asyncio.sleep(seconds)
    return f"waited {seconds:g} s"
"""


class Podman:
    """podman with a storage of its own, on a machine without systemd too."""

    def __init__(self, folder: Path) -> None:
        self._options = [f"--root={folder}/storage", f"--runroot={folder}/run"]
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        configuration = folder / "containers.conf"
        configuration.write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            # It wants more than root may have in a container of its own.
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
            '[network]\nnetwork_backend = "netavark"\n'
        )
        self._environ = {**os.environ, "CONTAINERS_CONF": str(configuration)}

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = ["podman", *self._options, *arguments]
        options = {"check": True, "capture_output": True, "text": True, "env": self._environ, **options}
        return subprocess.run(command, **options)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = ["podman", *self._options, *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True, env=self._environ)


def make_base(folder: Path) -> Path:
    """The file system of an image with Python 3.13."""
    base = folder / "base"
    if not (base / "usr" / "bin" / "python3.13").exists():
        shutil.rmtree(base, ignore_errors=True)
        packages = "python3,python3-venv,python3-pip,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "trixie", str(base)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in ("python", "python3"):
            (base / "usr" / "local" / "bin" / name).symlink_to("/usr/bin/python3.13")
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, base / CERTIFICATES.relative_to("/"))
    return base


def import_base(podman: Podman, base: Path) -> None:
    archive = base.with_suffix(".tar")
    subprocess.run(["tar", "-C", str(base), "-cf", str(archive), "."], check=True)
    podman("import", str(archive), BASE)
    archive.unlink()


def build(podman: Podman, folder: Path, image: str) -> None:
    """Build the image of a Dockerfile."""
    options = ["--pull=never", "--format=docker", "--isolation=chroot", "--network=host", "--tag", image]
    done = podman("build", *options, str(folder), check=False)
    if done.returncode:
        sys.exit(f"podman build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def size_of(podman: Podman, image: str) -> float:
    """MiB."""
    return int(podman("image", "inspect", "--format={{.Size}}", image).stdout) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.container")
    parser.add_argument("--keep", type=Path)
    keep: Path | None = parser.parse_args().keep
    missing = [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"As root, with {', '.join(missing)}: apt-get install {' '.join(missing)}" if missing else "As root.")
        return 1
    with tempfile.TemporaryDirectory(prefix="gumcp-container-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        podman = Podman(folder)
        try:
            import_base(podman, make_base(keep or folder))
            began = time.monotonic()
            build(podman, ROOT, IMAGE)
            added = size_of(podman, IMAGE) - size_of(podman, BASE)
            print(f"built in {time.monotonic() - began:.0f} s; {added:.0f} MiB on top of its base")
            return int(not check(podman, folder))
        finally:
            podman("rm", "--force", "--volumes", "--time=0", NAME, check=False)
            podman("system", "reset", "--force", check=False)


def check(podman: Podman, folder: Path) -> bool:
    servers = folder / "servers" / "slow"
    servers.mkdir(parents=True)
    (servers / "main.py").write_text(SERVER)
    is_well = True

    def say(claim: str, holds: bool, seen: object = "") -> None:
        nonlocal is_well
        is_well &= holds
        print(f"{'ok    ' if holds else 'FAILED'} {claim}{f': {seen}' if seen != '' else ''}", flush=True)

    def inside(*command: str) -> subprocess.CompletedProcess[str]:
        return podman("exec", NAME, *command, check=False)

    def healthy(seconds: float = 60) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if podman("healthcheck", "run", NAME, check=False).returncode == 0:
                return True
            time.sleep(0.5)
        return False

    options = ["--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=all", "--network=none"]
    options += ["--security-opt=no-new-privileges", f"--volume={folder}/servers:/srv/gumcp/servers:ro"]
    # Otherwise a systemd would have to run the health check.
    options += ["--health-interval=disable"]
    began = time.monotonic()
    podman("run", "--detach", "--name", NAME, *options, "--volume=gumcp-evidence:/var/lib/gumcp", IMAGE)
    say("the health check of the image passes", healthy(), f"after {time.monotonic() - began:.1f} s")
    say("it is this version", inside("gumcp", "--version").stdout.split()[-1:] == [__version__], __version__)
    status = inside("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    say("process 1 runs as user 10001", fields.get("Uid", "").split() == ["10001"] * 4, fields.get("Name"))
    capabilities = {name: fields.get(name) for name in ("CapEff", "CapPrm", "CapBnd")}
    say(
        "it has no capabilities, and can get none",
        {*capabilities.values()} == {"0" * 16} and fields.get("NoNewPrivs") == "1",
    )
    refused = ["/x", "/opt/gumcp/x", "/srv/gumcp/x", "/srv/gumcp/servers/x", "/etc/x"]
    written = [path for path in refused if inside("touch", path).returncode == 0]
    say("nothing can be written beside the volume and /tmp", not written, ", ".join(refused))
    log = podman("logs", NAME).stdout
    say("the first start printed a login", log.count("Made a login for the admin") == 1)
    health = inside("python", "-c", ASK, "http://127.0.0.1:8000/health_check").stdout.strip()
    say("it answers", '"status": "ok"' in health, health)
    metrics = inside("python", "-c", ASK, "http://127.0.0.1:9091/metrics").stdout
    say("it serves metrics", "gumcp_load_failures_servers 0.0" in metrics)
    keyless = inside("python", "-c", ASK, "http://127.0.0.1:8000/slow/me")
    say("it asks for keys", "401" in keyless.stderr)
    made = inside("gumcp", "create_key", "ada", "--json")
    key = json.loads(made.stdout)["key"]
    told = inside("python", "-c", CALL, key, "0").stdout.strip()
    say("a client with a key calls a tool", told.endswith("waited 0 s"), told.split("\n")[-1])

    inside("rm", "/tmp/called")
    under_way = podman.start("exec", NAME, "python", "-c", CALL, key, "4")
    while inside("test", "-e", "/tmp/called").returncode:
        time.sleep(0.1)
    began = time.monotonic()
    podman("stop", "--time=30", NAME)
    seconds = time.monotonic() - began
    answer = (under_way.communicate(timeout=30)[0] or "").strip()
    say("SIGTERM lets a call in flight finish", answer.endswith("waited 4 s"), answer)
    state = json.loads(podman("inspect", "--format={{json .State}}", NAME).stdout)
    say("it ends with status 0, before it is killed", state["ExitCode"] == 0 and seconds < 25, f"{seconds:.1f} s")
    changes = podman("diff", NAME).stdout.split("\n")
    changed = [
        line
        for line in changes
        if line and not line.endswith((" /etc", " /run", " /run/secrets", "/tmp", "/proc", "/sys", "/dev"))
    ]
    say("the container's own layer is unchanged", not changed, "; ".join(changed))
    [volume] = json.loads(podman("volume", "inspect", "gumcp-evidence").stdout)
    data = Path(volume["Mountpoint"])
    files = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    say("data is in the volume", {"gumcp.sqlite3", "secret_key"} <= set(files), ", ".join(files))
    modes = {name: oct((data / name).stat().st_mode & 0o777) for name in ("gumcp.sqlite3", "secret_key")}
    say("for its owner only", set(modes.values()) == {"0o600"}, modes)

    podman("start", NAME)
    say("it starts again on its data", healthy())
    told = inside("python", "-c", CALL, key, "0").stdout.strip()
    say("the key still works", told.endswith("waited 0 s"), told.split("\n")[-1])
    say("no second login was made", podman("logs", NAME).stdout.count("Made a login for the admin") == 1)
    podman("kill", "--signal=KILL", NAME)
    podman("rm", NAME)
    podman(
        "run",
        "--detach",
        "--name",
        NAME,
        *options,
        "--volume=gumcp-evidence:/var/lib/gumcp",
        "--env=GUMCP_AUTH=open",
        IMAGE,
    )
    podman("wait", NAME, timeout=60)
    said = [line for line in podman("logs", NAME).stderr.splitlines() if "without keys" in line]
    say("it refuses to run without keys", len(said) == 1, "".join(said)[:100])
    return is_well


if __name__ == "__main__":
    sys.exit(main())
