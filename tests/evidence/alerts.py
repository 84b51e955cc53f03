"""Every rule of docs/deploy/alerts.yml, fired by a fault and cleared: `python -m tests.evidence.alerts [ALERT…]`.

A real Prometheus (Debian's package `prometheus`) scrapes a real host once a second. The rules are those of the file,
with two changes: `for` is two seconds, and windows of ten minutes are fifteen seconds.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.evidence.hosts import fresh_host
from tests.support.host_process import HostProcess
from tests.support.issued_keys import issue
from tests.support.processes import ROOT, free_port, manage, running, until
from tests.support.streamable import StatelessClient

RULES: Final = ROOT / "docs" / "deploy" / "alerts.yml"
FOR: Final = "2s"
WINDOW: Final = "15s"
WAIT_SECONDS: Final = 60.0

SERVER: Final = """
import asyncio, time
from pathlib import Path
from mcp.server.mcpserver import MCPServer

server = MCPServer("ill")
released = Path(__file__).with_name("released")


@server.tool()
async def block(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@server.tool()
async def fail() -> str:
    raise RuntimeError("what it calls is down")


@server.tool()
async def ignore_the_end() -> str:
    while not released.exists():
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            pass
    return "released"
"""

Fault = Callable[["Patient"], contextlib.AbstractContextManager[None]]


class Patient:
    """The host that is made ill, and who calls it."""

    def __init__(self, host: HostProcess, servers: Path) -> None:
        self.host = host
        self.servers = servers
        self.key = issue(host.data_dir, "ada").session_key

    def call(self, tool: str, **arguments: Any) -> None:
        # The tool may fail: that is what it is called for.
        with contextlib.suppress(OSError, AssertionError):
            StatelessClient(self.host, "ill", self.key).call(tool, **arguments)

    def reload(self) -> None:
        settings = {"GUMCP_SERVER_DIRS": str(self.servers)}
        # Its status is 1 while a folder fails.
        manage("reload", data_dir=self.host.data_dir, **settings)

    @contextmanager
    def again_and_again(self, action: Callable[[], object], seconds: float) -> Iterator[None]:
        """Do something every so many seconds inside the block."""
        ends = threading.Event()

        def run() -> None:
            while not ends.wait(seconds):
                action()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


@contextmanager
def broken_folder(patient: Patient) -> Iterator[None]:
    """A folder whose main.py does not compile; then it is mended."""
    folder = patient.servers / "broken"
    folder.mkdir()
    (folder / "main.py").write_text("def server(:\n")
    patient.reload()
    yield
    shutil.rmtree(folder)
    patient.reload()


@contextmanager
def blocked_loop(patient: Patient) -> Iterator[None]:
    """A tool that sleeps without `await` for twelve seconds."""
    thread = threading.Thread(target=patient.call, args=["block"], kwargs={"seconds": 12})
    thread.start()
    yield
    thread.join()


@contextmanager
def failing_tool(patient: Patient) -> Iterator[None]:
    """A tool that raises at each call, four times a second; then nobody calls it."""
    with patient.again_and_again(lambda: patient.call("fail"), 0.25):
        yield


@contextmanager
def stubborn_call(patient: Patient) -> Iterator[None]:
    """A call that ignores its cancellation at the time limit of a second; then it returns."""
    patient.call("ignore_the_end")
    yield
    (patient.servers / "ill" / "released").touch()


@contextmanager
def failing_request(patient: Patient) -> Iterator[None]:
    """A request at which the host's own code raises, once."""
    assert patient.host.request("GET", "/boom/before").status == 500
    yield


@contextmanager
def refused_callers(patient: Patient) -> Iterator[None]:
    """Requests without a key, ten a second."""
    with patient.again_and_again(lambda: patient.host.request("POST", "/ill/ada", b"{}"), 0.1):
        yield


@contextmanager
def full_host(patient: Patient) -> Iterator[None]:
    """Three sessions in use where three are allowed, and a fourth client, once; then they leave."""
    with contextlib.ExitStack() as sessions:
        for _ in range(3):
            sessions.enter_context(patient.host.session("ill", patient.key))
        with patient.host.stream("ill", patient.key) as refused:
            assert refused.refusal().status == 503
        yield


FAULTS: Final[dict[str, Fault]] = {
    "GumcpServerFailed": broken_folder,
    "GumcpServerBlocked": blocked_loop,
    "GumcpCallsFail": failing_tool,
    "GumcpCallsStuck": stubborn_call,
    "GumcpHostFails": failing_request,
    "GumcpCallersRefused": refused_callers,
    "GumcpNoRoom": full_host,
}
"""Alert -> what causes it. GumcpDown has its own part: the host dies, and another one is started."""


class Prometheus:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return json.load(response)["data"]

    def firing(self) -> dict[str, str]:
        """Alert -> its summary."""
        alerts = self.ask("/api/v1/alerts")["alerts"]
        return {it["labels"]["alertname"]: it["annotations"]["summary"] for it in alerts if it["state"] == "firing"}

    def wait(self, alert: str, *, is_firing: bool) -> float:
        """Wait until an alert fires, or does not. Returns the seconds."""
        began = time.monotonic()
        until(lambda: (alert in self.firing()) == is_firing, WAIT_SECONDS, pause_seconds=0.2)
        return time.monotonic() - began


def shortened(rules: dict[str, Any]) -> dict[str, Any]:
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = FOR
            rule["expr"] = re.sub(r"\[\d+m\]", f"[{WINDOW}]", rule["expr"])
    return rules


@contextmanager
def running_prometheus(folder: Path, metrics_port: int, rules: dict[str, Any]) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("Prometheus is missing: apt-get install prometheus")
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    configuration = yaml.safe_load((ROOT / "docs" / "deploy" / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (folder / "targets.yml").write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{metrics_port}"]}]))
    port = free_port()
    prometheus = Prometheus(port)

    def is_ready() -> bool:
        return bool(prometheus.ask("/api/v1/targets?state=active")["activeTargets"])

    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with running(
        [program, *options, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"],
        env={},
        log=folder / "log",
        is_ready=is_ready,
        cwd=folder,
    ):
        yield prometheus


def main(wanted: list[str]) -> int:
    rules = shortened(yaml.safe_load(RULES.read_text()))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    if lacking := set(alerts) - {"GumcpDown", *FAULTS}:
        print(f"No fault is known for {', '.join(sorted(lacking))}.")
        return 1
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, stdout=subprocess.DEVNULL)
    failed = False

    def report(alert: str, cause: str, fired: float, cleared: float, summary: str) -> None:
        print(
            f"{alert:20} fired after {fired:4.1f} s, cleared after {cleared:4.1f} s | {cause}\n{'':20} {summary}",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="gumcp-alerts-") as name:
        folder, metrics_port = Path(name), free_port()
        servers = folder / "servers"
        (servers / "ill").mkdir(parents=True)
        (servers / "ill" / "main.py").write_text(SERVER)
        options = {
            "server_dirs": servers,
            "application": "tests.faults.probe:application",
            "GUMCP_METRICS_PORT": str(metrics_port),
            "GUMCP_AUTH": "keys",
            "GUMCP_MAX_SESSIONS": "3",
            "GUMCP_CALL_TIMEOUT_SECONDS": "1s",
        }
        with running_prometheus(folder, metrics_port, rules) as prometheus:
            fired = 0.0
            if not wanted or "GumcpDown" in wanted:
                with fresh_host("daphne", **options) as host:
                    until(
                        lambda: prometheus.ask("/api/v1/query?query=up")["result"][0]["value"][1] == "1", WAIT_SECONDS
                    )
                    prometheus.wait("GumcpDown", is_firing=False)
                    host.kill()
                    fired = prometheus.wait("GumcpDown", is_firing=True)
                    summary = prometheus.firing()["GumcpDown"]
            with fresh_host("daphne", **options) as host:
                if fired:
                    cleared = prometheus.wait("GumcpDown", is_firing=False)
                    report("GumcpDown", "kill -9; then another host is started.", fired, cleared, summary)
                patient = Patient(host, servers)
                for alert in alerts:
                    if alert == "GumcpDown" or (wanted and alert not in wanted):
                        continue
                    cause = (FAULTS[alert].__doc__ or "").strip()
                    try:
                        with FAULTS[alert](patient):
                            fired = prometheus.wait(alert, is_firing=True)
                            summary = prometheus.firing()[alert]
                        cleared = prometheus.wait(alert, is_firing=False)
                    except Exception as error:
                        failed = True
                        print(f"{alert:20} FAILED: {type(error).__name__}: {error} | {cause}", flush=True)
                    else:
                        report(alert, cause, fired, cleared, summary)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
