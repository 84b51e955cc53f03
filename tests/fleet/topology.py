"""Two nodes of two workers, nginx, PostgreSQL and Redis on loopback addresses of this machine.

`make fleet` runs it until Ctrl-C: `python -m tests.fleet.topology`. The tests of several machines use it too. The
programs are Debian's packages; where one is missing, root installs it.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, ROOT, environment, free_port, running
from tests.support.wire import exchange

PACKAGES: Final = {"nginx": "nginx-light", "redis-server": "redis-server", "initdb": "postgresql"}
"""Program -> Debian's package."""

MAKE_OPERATOR: Final = """
from django.contrib.auth.models import User
User.objects.create_superuser("operator", password="fleet")
"""

NODE_ADDRESSES: Final = ("127.0.1.1", "127.0.1.2")


class ProgramsMissing(Exception):
    """Programs that the topology needs are not installed."""


def program(name: str) -> str | None:
    """Where a program is; PostgreSQL's are in a folder of their own."""
    places = ["/usr/sbin", "/usr/bin", "/usr/local/bin", *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def require_programs(*, installs: bool = False) -> None:
    """Check that all programs are there, and install those that are missing if allowed and possible.

    Raises:
        ProgramsMissing: with the command that installs them.
    """
    missing = sorted({package for name, package in PACKAGES.items() if program(name) is None})
    if missing and installs and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(missing)} …", flush=True)
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdin": subprocess.DEVNULL}
        for command in (["update", "-qq"], ["install", "-y", "-qq", *missing]):
            subprocess.run(["apt-get", *command], stdout=subprocess.DEVNULL, check=False, **quiet)  # type: ignore[call-overload]
        missing = sorted({package for name, package in PACKAGES.items() if program(name) is None})
    if missing:
        raise ProgramsMissing(f"Several machines need {', '.join(missing)}: apt-get install {' '.join(missing)}")


@dataclass
class Node:
    """One machine of the fleet."""

    address: str
    port: int
    peer_port: int
    metrics_port: int
    folder: Path
    wrapper: tuple[str, ...] = ()
    """A command that runs it."""
    process: subprocess.Popen[bytes] | None = None
    running: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        """Its name in the ring."""
        return f"{self.address}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def base_url(self) -> str:
        return f"http://{self.name}"

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass
class Topology:
    """What runs. `base_url` is nginx."""

    folder: Path
    settings: dict[str, str]
    workers: int
    services: str = "127.0.0.1"
    """The address of PostgreSQL and Redis."""
    nodes: list[Node] = field(default_factory=list)
    port: int = 0
    database_port: int = 0
    redis_port: int = 0
    redis: subprocess.Popen[bytes] | None = None
    database: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_url(self) -> str:
        return f"postgres://postgres@{self.services}:{self.database_port}/postgres"

    def environment(self, node: Node, **settings: str) -> dict[str, str]:
        return environment(
            node.folder,
            **{
                "DATABASE_URL": self.database_url,
                "GUMCP_REDIS_URL": f"redis://{self.services}:{self.redis_port}/0",
                "GUMCP_PEER_ADDRESS": f"{node.address}:{node.peer_port}",
                "GUMCP_TRUSTED_PROXIES": "127.0.0.1",
                "GUMCP_ALLOWED_HOSTS": ",".join(it.address for it in self.nodes),
                "GUMCP_METRICS_PORT": str(node.metrics_port),
                "GUMCP_SERVER_DIRS": f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}",
                **self.settings,
                **settings,
            },
        )

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command on the first node."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment(self.nodes[0]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, node: Node) -> None:
        """Start one machine, and wait until it serves."""
        command = [sys.executable, "manage.py", "serve", "--host", node.address, "--port", str(node.port)]
        node.running.close()
        log = node.folder / "log"
        node.process = node.running.enter_context(
            running(
                [*node.wrapper, *command, "--workers", str(self.workers)],
                env=self.environment(node),
                log=log,
                is_ready=lambda: f"serves with {self.workers} workers" in log.read_text(errors="replace"),
            )
        )

    def stop(self) -> None:
        """Stop all machines."""
        for node in self.nodes:
            node.running.close()


@contextmanager
def running_topology(
    folder: Path,
    *,
    workers: int = 2,
    balancing: str | None = None,
    addresses: tuple[str, ...] = NODE_ADDRESSES,
    services: str = "127.0.0.1",
    wrappers: tuple[tuple[str, ...], ...] = ((), ()),
    **settings: str,
) -> Iterator[Topology]:
    """Run everything for the length of a `with` block. `balancing`: nginx's method, if not that of our file.

    `addresses` of the machines, `services`: of PostgreSQL and Redis. `wrappers`: commands that run the machines.

    Raises:
        ProgramsMissing
    """
    require_programs()
    settings = {"GUMCP_SECRET_KEY": secrets.token_hex(32), **settings}
    topology = Topology(folder, settings, workers, services=services)
    topology.nodes = [
        Node(address, free_port(), free_port(), free_port(), folder / f"node-{number}", wrapper)
        for number, (address, wrapper) in enumerate(zip(addresses, wrappers, strict=True), 1)
    ]
    for node in topology.nodes:
        node.folder.mkdir(parents=True)
    with ExitStack() as stack:
        topology.redis_port, topology.redis = stack.enter_context(running_redis(folder, services))
        topology.database_port, topology.database = stack.enter_context(_running_postgresql(folder, services))
        migrated = topology.manage("migrate", "--verbosity", "0")
        assert migrated.returncode == 0, migrated.stderr
        stack.callback(topology.stop)
        with ThreadPoolExecutor(len(topology.nodes)) as pool:
            list(pool.map(topology.start, topology.nodes))
        topology.port = stack.enter_context(_running_nginx(folder, topology.nodes, balancing))
        yield topology


@contextmanager
def running_redis(folder: Path, address: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a Redis that keeps nothing on disk; yields its port and its process."""
    port = free_port()
    server = program("redis-server")
    assert server is not None
    command = [
        server,
        "--port",
        str(port),
        "--bind",
        address,
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    log = folder / "redis.log"
    ready = "eady to accept connections"
    with running(command, env={}, log=log, is_ready=lambda: ready in log.read_text(), cwd=folder) as process:
        yield port, process


@contextmanager
def _running_postgresql(folder: Path, address: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    initdb, postgres = program("initdb"), program("postgres")
    assert initdb is not None
    assert postgres is not None
    # It refuses to run as root, and its user must be able to reach its folder.
    data = Path(tempfile.mkdtemp(prefix="gumcp-postgresql-"))
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(data, "postgres", "postgres")
        options = {"user": "postgres", "group": "postgres", "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, "cwd": data}
    try:
        made = ["-D", str(data / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([initdb, *made], check=True, env={"PATH": os.environ["PATH"]}, **quiet, **options)  # type: ignore[call-overload]
        command = [postgres, "-D", str(data / "data"), "-p", str(port), "-h", address, "-k", str(data)]
        with (data / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 trust\n")
        log = folder / "postgresql.log"
        ready = "ready to accept connections"
        with running(
            # SIGINT ends it without waiting for clients.
            [*command, "-c", "fsync=off", "-c", "max_connections=200"],
            env={},
            log=log,
            is_ready=lambda: ready in log.read_text(),
            cwd=data,
            **options,
        ) as process:
            yield port, process
            process.send_signal(signal.SIGINT)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def nginx_configuration(nodes: list[Node], port: int, folder: Path, balancing: str | None = None) -> str:
    """`docs/balancers/nginx.conf` with the addresses of this topology."""
    text = (ROOT / "docs" / "balancers" / "nginx.conf").read_text()
    servers = "\n".join(f"    server {node.name} max_fails=0;" for node in nodes)
    text, count = re.subn(r"(    server 10\.0\.0\.\d:8000[^\n]*\n)+", servers + "\n", text)
    assert count == 1
    if balancing is not None:
        text = text.replace("hash $gumcp_server/$gumcp_key consistent;", f"{balancing};")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    text = text.replace("/var/log/nginx/gumcp-error.log", str(folder / "nginx-error.log"))
    paths = "".join(f"{kind}_temp_path {folder}/nginx-{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    return (
        f"daemon off; error_log {folder}/nginx.log; pid {folder}/nginx.pid; events {{ worker_connections 4096; }}\n"
        f"http {{ client_body_temp_path {folder}/nginx-body; {paths}\n{text}\n}}\n"
    )


@contextmanager
def _running_nginx(folder: Path, nodes: list[Node], balancing: str | None) -> Iterator[int]:
    port = free_port()
    nginx = program("nginx")
    assert nginx is not None
    configuration = folder / "nginx.conf"
    configuration.write_text(nginx_configuration(nodes, port, folder, balancing))
    with running(
        [nginx, "-p", str(folder), "-c", str(configuration)],
        env={},
        log=folder / "nginx-output.log",
        is_ready=lambda: exchange(port, "GET", "/health_check").status == 200,
    ):
        yield port


@contextmanager
def running_haproxy(topology: Topology) -> Iterator[str]:
    """Run HAProxy with `docs/balancers/haproxy.cfg` in front of the machines; yields its address."""
    haproxy, port = program("haproxy"), free_port()
    assert haproxy is not None
    text = (ROOT / "docs" / "balancers" / "haproxy.cfg").read_text().replace("bind :80", f"bind 127.0.0.1:{port}")
    for number, node in enumerate(topology.nodes, 1):
        text = text.replace(f"10.0.0.{number}:8000", node.name)
    configuration = topology.folder / "haproxy.cfg"
    configuration.write_text(text)
    with running(
        [haproxy, "-db", "-f", str(configuration)],
        env={},
        log=topology.folder / "haproxy-output.log",
        is_ready=lambda: exchange(port, "GET", "/health_check").status == 200,
    ):
        yield f"http://127.0.0.1:{port}"


def main() -> None:
    """Run the topology until Ctrl-C."""
    try:
        require_programs(installs=True)
    except ProgramsMissing as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory(prefix="gumcp-fleet-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        print("Starting PostgreSQL, Redis, two nodes of two workers, and nginx …", flush=True)
        try:
            with running_topology(Path(name)) as topology:
                made = topology.manage(
                    "shell",
                    "--no-imports",
                    "-c",
                    MAKE_OPERATOR,
                )
                assert made.returncode == 0, made.stderr
                print(f"\n  MCP endpoint  {topology.base_url}/simple-tools-server/me")
                print(f"  admin         {topology.base_url}/admin/  (operator, password fleet)")
                print(f"  processes     {topology.base_url}/admin/records/hostprocess/")
                for node in topology.nodes:
                    print(f"  node          {node.base_url}  metrics http://127.0.0.1:{node.metrics_port}/metrics")
                    print(f"                log {node.folder}/log, supervisor is process {node.pid}")
                print(f"  PostgreSQL    {topology.database_url}\n  Redis         port {topology.redis_port}")
                print("\nStop with Ctrl-C.", flush=True)
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                while all(node.process is not None and node.process.poll() is None for node in topology.nodes):
                    time.sleep(0.5)
                print("A node has ended.")
        except KeyboardInterrupt:
            print("Stopping …", flush=True)


if __name__ == "__main__":
    main()
