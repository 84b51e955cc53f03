"""Where the CPU time of a call goes: by package of the project, by library, and what is spent in the kernel.

    make profile
    python -m tests.benchmarks.layers --hosts uvicorn --eras 2025

py-spy looks at the host while the load client calls it, at whichever thread holds Python's lock (GIL). Each sample
counts for the innermost function outside the standard library. Writing to a socket counts for the one that calls it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks.client import Job, as_json
from tests.benchmarks.eras import ERAS
from tests.benchmarks.processes import HOSTS, running
from tests.benchmarks.workloads import STORE
from tests.support.processes import ROOT

SAMPLES_PER_SECOND: Final = 500
WARM_UP_SECONDS: Final = 1.0
SHOWN: Final = 25

_LIBRARIES: Final = {
    "mcp": "MCP SDK",
    "mcp_types": "MCP SDK",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic",
    "anyio": "anyio",
    "daphne": "ASGI server",
    "twisted": "ASGI server",
    "uvicorn": "ASGI server",
    "starlette": "starlette",
    "django": "django",
    "prometheus_client": "prometheus_client",
}


def layer(stack: list[str]) -> str:
    """The layer of a sample. `stack`: `function (file)`, the innermost last."""
    for entry in reversed(stack):
        parts = entry.rpartition("(")[2].rstrip(")").split("/")
        if parts[0] in _LIBRARIES:
            return _LIBRARIES[parts[0]]
        if parts[0] == "gateway":
            package = parts[1].removesuffix(".py")
            writes = entry.startswith(("LoopTransport.write ", "HttpConnection.write "))
            return "writing to sockets (serving)" if writes else f"gateway.{package}"
        if parts[0] == "servers":
            return "the server's own code"
    return "event loops and threads"


def layers(raw: str) -> Counter[str]:
    """Samples by layer, of what py-spy writes in its format `raw`."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        found[layer(stack.split(";"))] += int(count)
    return found


def measure(host_name: str, era: str, seconds: float) -> None:
    """Load one host, look at it, and print what was seen."""
    with running(HOSTS[host_name], ROOT / "servers") as target, tempfile.TemporaryDirectory() as folder:
        job = Job(
            kind="load",
            era=era,
            workload=STORE.name,
            port=target.port,
            pid=target.pid,
            session_keys=("bench-0:benchmark-key",),
            sessions=20,
            warm_up_seconds=WARM_UP_SECONDS,
            seconds=seconds + 1,
        )
        client = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert client.stdin is not None
        client.stdin.write(as_json(job).encode())
        client.stdin.close()
        client.stdin = None
        raw = Path(folder, "raw")
        process = psutil.Process(target.pid)
        before = process.cpu_times()
        subprocess.run(
            [
                *("py-spy", "record", "--gil", "--nolineno", "--format", "raw", "--output", str(raw)),
                *("--pid", str(target.pid), "--rate", str(SAMPLES_PER_SECOND), "--duration", str(round(seconds))),
            ],
            check=True,
            capture_output=True,
        )
        after = process.cpu_times()
        client.communicate(timeout=seconds + 60)
        found = layers(raw.read_text())
    user, system = after.user - before.user, after.system - before.system
    print(f"\n{HOSTS[host_name].title}, {era}: {system / (user + system):.0%} of the CPU time in the kernel")
    for name, samples in found.most_common(SHOWN):
        print(f"  {samples / found.total():6.1%}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.layers")
    parser.add_argument("--hosts", default="daphne,uvicorn", help="separated by commas (default: %(default)s)")
    parser.add_argument("--eras", default=",".join(ERAS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each (default: %(default)s)")
    arguments = parser.parse_args()
    for host_name in arguments.hosts.split(","):
        for era in arguments.eras.split(","):
            measure(host_name, era, arguments.seconds)


if __name__ == "__main__":
    main()
