"""``python -m tests.benchmarks``: the project on Daphne and on uvicorn beside the SDK's own transports, in one run.

Rounds are interleaved (every host once, then every host again), because a busy machine slows whatever runs at that
moment; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from tests.benchmarks import child, off_loop
from tests.benchmarks.client import Job, as_json
from tests.benchmarks.eras import ERAS
from tests.benchmarks.processes import (
    HOSTS,
    Host,
    Running,
    of_another_checkout,
    running,
    started_on_core,
)
from tests.benchmarks.report import Series, as_data, table
from tests.benchmarks.workloads import STORE
from tests.support.processes import ROOT, ProcessFailed

_PACKAGES: Final = ("mcp", "django", "channels", "daphne", "twisted", "uvicorn", "uvloop", "httptools", "h11")

_COMPARISONS: Final = {off_loop.NAME: off_loop, child.NAME: child}
"""Workloads that compare two servers of one host, and print a line instead of a table."""

_WORKLOADS: Final = (STORE.name, *_COMPARISONS)


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    seconds: float
    warm_up_seconds: float
    sessions: int
    held_sessions: int
    users: int
    has_one_core: bool
    """Whether each host has the first core for itself, and the client the second. Otherwise all have all cores."""

    @property
    def host_core(self) -> int | None:
        return 0 if self.has_one_core else None

    @property
    def client_core(self) -> int | None:
        return 1 if self.has_one_core else None

    @property
    def session_keys(self) -> tuple[str, ...]:
        return tuple(f"bench-{number}:benchmark-key" for number in range(self.users))

    def job(self, kind: str, era: str, workload: str, target: Running) -> Job:
        return Job(
            kind="load" if kind == "load" else "hold",
            era=era,
            workload=workload,
            port=target.port,
            pid=target.pid,
            session_keys=target.session_keys[: self.users] or self.session_keys,
            sessions=self.sessions if kind == "load" else self.held_sessions,
            warm_up_seconds=self.warm_up_seconds,
            seconds=self.seconds,
        )


def run_job(job: Job, series: Series, core: int | None = None) -> None:
    """Run the load client in a process of its own and add its figures to the series, unless that has ended already.

    `core`: where it runs; anywhere if it is None.
    """
    if series.instead is not None:
        return
    with started_on_core(core):
        client = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.client"],
            input=as_json(job),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=job.warm_up_seconds + job.seconds + 120,
            check=False,
        )
    if client.returncode != 0:
        print(client.stderr, file=sys.stderr)
        series.fail(client.stderr.strip().splitlines()[-1])
        return
    outcome: dict[str, Any] = json.loads(client.stdout)
    if "not_served" in outcome:
        series.instead = f"not served: {outcome['not_served']}"
    else:
        series.rounds.append(outcome)


def measure_load(hosts: Sequence[Host], eras: Sequence[str], workload: str, plan: Plan, servers: Path) -> list[Series]:
    """Drive all hosts in turn, again and again, while all of them stay up."""
    series = {
        (era, host.name): Series("load", era, workload, host.name, host.title, []) for era in eras for host in hosts
    }
    with ExitStack() as stack:
        up: list[Running] = []
        for host in hosts:
            try:
                with started_on_core(plan.host_core):
                    up.append(stack.enter_context(running(host, servers)))
            except ProcessFailed as failure:
                for era in eras:
                    note_failure(series[era, host.name], failure)
        for number in range(plan.rounds):
            progress(f"calls, round {number + 1} of {plan.rounds}")
            for era in eras:
                for target in up:
                    run_job(plan.job("load", era, workload, target), series[era, target.host.name], plan.client_core)
    return list(series.values())


def measure_memory(
    hosts: Sequence[Host], eras: Sequence[str], workload: str, plan: Plan, servers: Path
) -> list[Series]:
    """Hold silent sessions, each time in a fresh process: one that was used before has free memory to give away."""
    series = {
        (era, host.name): Series("hold", era, workload, host.name, host.title, []) for era in eras for host in hosts
    }
    for number in range(plan.rounds):
        progress(f"memory, round {number + 1} of {plan.rounds}")
        for era in eras:
            for host in hosts:
                row = series[era, host.name]
                if row.instead is not None:
                    continue
                try:
                    with running(host, servers) as target:
                        run_job(plan.job("hold", era, workload, target), row)
                except ProcessFailed as failure:
                    note_failure(row, failure)
    return list(series.values())


def note_failure(series: Series, failure: ProcessFailed) -> None:
    print(failure, file=sys.stderr)
    series.fail(str(failure).splitlines()[0])


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What a reader needs to know before comparing figures of two runs."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "none"
    return {"python": platform.python_version(), "cores": psutil.cpu_count(), "packages": packages}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    names = {"hosts": ",".join(HOSTS), "eras": ",".join(ERAS), "workloads": ",".join(_WORKLOADS)}
    parser.add_argument("--hosts", default=names["hosts"], help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--eras", default=names["eras"], help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--workloads", default=names["workloads"], help="which (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured per run (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before (default: %(default)s)")
    parser.add_argument("--sessions", type=int, default=20, help="each with one call in flight (default: %(default)s)")
    parser.add_argument("--held", type=int, default=500, help="silent sessions (default: %(default)s; 0: no memory)")
    parser.add_argument("--users", type=int, default=1, help="session keys that sessions take in turn (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run, and roughly how fast")
    parser.add_argument(
        "--one-core", action="store_true", help="each host runs on the first core, the client on the second (Linux)"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout of the project to measure beside")
    parser.add_argument("--servers", type=Path, default=ROOT / "servers", help="servers directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there too")
    arguments = parser.parse_args()
    for option, known in (("hosts", HOSTS), ("eras", ERAS), ("workloads", _WORKLOADS)):
        chosen = [name for name in getattr(arguments, option).split(",") if name]
        if not chosen or not set(chosen) <= set(known):
            parser.error(f"--{option} takes {', '.join(known)}")
        setattr(arguments, option, chosen)
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warm_up, arguments.held = 1, 1.5, 0.5, min(arguments.held, 200)
    return arguments


def print_tables(measured: Sequence[Series], what: str) -> None:
    """One table for each era."""
    for era in dict.fromkeys(row.era for row in measured):
        print(f"\n{table(f'{era} · {what}', [row for row in measured if row.era == era])}", flush=True)


def main() -> int:
    arguments = parse_arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))  # Hosts inherit it; a session is a descriptor.
    hosts = [HOSTS[name] for name in arguments.hosts]
    if arguments.against is not None:
        directory = arguments.against.resolve()
        # Those with keys are compared with those without, of the same checkout.
        compared = [host for host in hosts if host.is_ours and not host.checks_keys]
        hosts += [of_another_checkout(host, directory) for host in compared]
    plan = Plan(
        arguments.rounds,
        arguments.seconds,
        arguments.warm_up,
        arguments.sessions,
        arguments.held,
        arguments.users,
        arguments.one_core,
    )
    servers = arguments.servers.resolve()
    held_eras = [era for era in arguments.eras if ERAS[era].is_held_by_the_server]
    about = machine()
    print(
        f"Python {about['python']}, {about['cores']} cores, " + " ".join(map(" ".join, about["packages"].items())),
        flush=True,
    )
    everything: list[Series] = []
    for workload in arguments.workloads:
        if comparison := _COMPARISONS.get(workload):
            print(f"\n{(comparison.__doc__ or '').splitlines()[0]}", flush=True)
            everything += comparison.measure(
                hosts,
                arguments.eras,
                rounds=plan.rounds,
                seconds=plan.seconds / 2,
                warm_up_seconds=plan.warm_up_seconds / 2,
                run_job=run_job,
            )
            continue
        measured = measure_load(hosts, arguments.eras, workload, plan, servers)
        print_tables(measured, f"{workload} · calls, {plan.sessions} sessions · {plan.users} user(s)")
        everything += measured
        if plan.held_sessions and held_eras:
            measured = measure_memory(hosts, held_eras, workload, plan, servers)
            print_tables(measured, f"{workload} · {plan.held_sessions} held sessions · {plan.users} user(s)")
            everything += measured
    if arguments.json is not None:
        report = {"machine": about, "plan": vars(plan), "series": as_data(everything)}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(row.has_failed for row in everything))


if __name__ == "__main__":
    sys.exit(main())
