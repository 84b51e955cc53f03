"""compose.yaml, started for real by docker compose, without Docker and without an image registry, as root:

    python -m tests.evidence.compose [--keep FOLDER]

docker compose (version 2: Debian 13's package docker-compose, or its path in the variable COMPOSE) talks to podman, as
`tests.evidence.container` sets it up. In the place of the images of PostgreSQL, Redis, nginx and Prometheus stands one
that is made here of Debian's packages (`stand_in`). Grafana is left out: Debian has none. Ports 8000, 8080 and 9090 of
this machine must be free. netavark leaves its chains in iptables, without rules that do anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, Final

import yaml
from mcp.client import Client

from tests.evidence.container import Podman, build, import_base, make_base
from tests.support.processes import ROOT

STAND_IN: Final = Path(__file__).parent / "stand_in"
PROGRAMS: Final = ("podman", "runc", "debootstrap", "catatonit")
PACKAGES: Final = f"{' '.join(PROGRAMS)} netavark aardvark-dns iptables"
ENTRANCE: Final = "http://127.0.0.1:8080"
PAIRS: Final = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.compose")
    parser.add_argument("--keep", type=Path)
    keep: Path | None = parser.parse_args().keep
    compose = os.environ.get("COMPOSE") or shutil.which("docker-compose")
    if os.geteuid() != 0 or compose is None or any(shutil.which(name) is None for name in PROGRAMS):
        print(f"As root, with docker compose 2, and: apt-get install --no-install-recommends {PACKAGES}")
        return 1
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="gumcp-compose-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o755)
        checkout = folder / "gumcp"
        checkout.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-xC", str(checkout)], input=archive, check=True)
        podman = Podman(folder)
        stack.callback(podman, "system", "reset", "--force", check=False)
        make_images(podman, keep or folder, checkout)
        socket = folder / "podman.sock"
        service = podman.start("system", "service", "--time=0", f"unix://{socket}")
        stack.callback(service.wait)
        stack.callback(service.terminate)
        ends = threading.Event()
        checks = threading.Thread(target=run_health_checks, args=[podman, ends])
        checks.start()
        stack.callback(checks.join)
        stack.callback(ends.set)

        def run(*arguments: str, check: bool = True) -> str:
            environ = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
            command = [compose, "--progress=quiet", *arguments]
            done = subprocess.run(
                command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=300, check=False
            )
            if check and done.returncode:
                raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
            return done.stdout

        stack.callback(run, "--profile=fleet", "down", "--volumes", "--timeout=5", check=False)
        return int(not check_all(run, podman, checkout))


def make_images(podman: Podman, keep: Path, checkout: Path) -> None:
    import_base(podman, make_base(keep))
    services = yaml.safe_load((checkout / "compose.yaml").read_text())["services"]
    build(podman, checkout, f"docker.io/library/{services['gumcp']['image']}")
    build(podman, STAND_IN, "localhost/stand-in")
    for name in ("postgres", "redis", "nginx", "prometheus"):
        image = services[name]["image"]
        tag = f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"
        podman(
            "build",
            "--pull=never",
            "--isolation=chroot",
            "--tag",
            tag,
            "-",
            input=f"FROM localhost/stand-in\nENV SERVICE={name}\n",
        )


def run_health_checks(podman: Podman, ends: threading.Event) -> None:
    """Do what systemd's timers do for podman where there is a systemd."""
    while not ends.wait(1):
        for container in podman("ps", "--quiet", check=False).stdout.split():
            podman("healthcheck", "run", container, check=False)


def check_all(run: Any, podman: Podman, checkout: Path) -> bool:
    is_well = True

    def say(claim: str, holds: bool, seen: object = "") -> None:
        nonlocal is_well
        is_well &= holds
        print(f"{'ok    ' if holds else 'FAILED'} {claim}{f': {seen}' if seen != '' else ''}", flush=True)

    said = run("version", "--short").strip()
    run("--profile=fleet", "config", "--quiet", check=False)
    subprocess.run(["sh", "docs/deploy/compose/make-secrets.sh"], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    run("--profile=fleet", "config", "--quiet")
    say("docker compose takes the file", True, said)

    began = time.monotonic()
    run("--profile=fleet", "up", "--detach", "--no-build", "--pull=never", "nginx", "prometheus")
    say("the fleet starts: both nodes are healthy", True, f"{time.monotonic() - began:.0f} s")
    say("the host alone does not start with it", "gumcp-gumcp-1" not in podman("ps", "--format={{.Names}}").stdout)
    health = fetch(f"{ENTRANCE}/health_check")
    say("nginx leads to them", '"ok"' in health, health)
    made = run("exec", "-T", "node-1", "gumcp", "create_key", "ada", "--json")
    key = json.loads(made)["key"]
    say(
        "calls of one user, each on a connection of its own, find what they stored",
        asyncio.run(store(key)),
        f"{PAIRS} pairs",
    )
    say(
        "the operator logs in with the password of the file",
        log_in((checkout / "secrets" / "admin_password").read_text()),
    )
    say("no log has that password", (checkout / "secrets" / "admin_password").read_text() not in run("logs", "node-1"))
    query = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote('up == 1')}"
    end = time.monotonic() + 40
    while len(up := json.loads(fetch(query))["data"]["result"]) < 2 and time.monotonic() < end:
        time.sleep(1)
    say("Prometheus reaches both nodes", len(up) == 2, ", ".join(sorted(it["metric"]["instance"] for it in up)))
    rules = json.loads(fetch("http://127.0.0.1:9090/api/v1/rules"))["data"]["groups"][0]["rules"]
    say("and has the alert rules", all(rule["health"] != "err" for rule in rules), len(rules))
    text = podman("exec", "gumcp-node-1-1", "python", "-c", RELAYED).stdout
    relayed = sum(float(value) for value in re.findall(r'gumcp_relayed_requests_total{to="node"} (\S+)', text))
    say("nginx's ring is the host's: nothing was relayed between the nodes", relayed == 0)

    began = time.monotonic()
    run("--profile=fleet", "stop")
    codes = [podman("inspect", "--format={{.State.ExitCode}}", f"gumcp-node-{n}-1").stdout.strip() for n in (1, 2)]
    say("both nodes end in order", codes == ["0", "0"], f"{time.monotonic() - began:.0f} s")
    run("--profile=fleet", "down", "--volumes")

    run("up", "--detach", "--no-build", "--pull=never")
    end = time.monotonic() + 40
    while '"ok"' not in (health := fetch("http://127.0.0.1:8000/health_check")) and time.monotonic() < end:
        time.sleep(0.5)
    say("the one host starts without secrets", '"ok"' in health)
    say("and prints the operator's login", "Made a login for the admin" in run("logs", "gumcp"))
    run("exec", "-T", "gumcp", "gumcp", "backup", "/var/lib/gumcp/backup.tar.gz")
    run("cp", "gumcp:/var/lib/gumcp/backup.tar.gz", str(checkout))
    say("a backup comes out as the page has it", (checkout / "backup.tar.gz").stat().st_size > 1000)
    return is_well


RELAYED: Final = """
import urllib.request
for node in ("node-1", "node-2"):
    print(urllib.request.urlopen(f"http://{node}:9091/metrics", timeout=10).read().decode())
"""


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError as error:
        return str(error)


async def store(key: str) -> bool:
    url = f"{ENTRANCE}/simple-tools-server/ada:{key}"
    for number in range(PAIRS):
        async with Client(url) as client:
            await client.call_tool("store-data", {"key": "number", "value": str(number)})
        async with Client(url, mode="legacy") as client:
            content: Any = (await client.call_tool("retrieve-data", {"key": "number"})).content[0]
            if not content.text.endswith(f" {number}"):
                return False
    return True


def log_in(password: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    page = opener.open(f"{ENTRANCE}/admin/login/", timeout=10).read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token
    fields = {"csrfmiddlewaretoken": token[1], "username": "operator", "password": password, "next": "/admin/"}
    request = urllib.request.Request(f"{ENTRANCE}/admin/login/", urllib.parse.urlencode(fields).encode())
    request.add_header("Referer", f"{ENTRANCE}/admin/login/")
    answer = opener.open(request, timeout=10)
    return answer.url == f"{ENTRANCE}/admin/" and "Overview" in answer.read().decode()


if __name__ == "__main__":
    sys.exit(main())
