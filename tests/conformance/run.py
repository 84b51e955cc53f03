"""Run the MCP conformance tool against the reference server, and say what passed.

    python tests/conformance/run.py                             # starts a host on Daphne, both protocol eras
    python tests/conformance/run.py --server uvicorn --repeat 20
    python tests/conformance/run.py --url http://localhost:8000/everything/conformance --requirements 2026-07-28

Exit code 0: every scored scenario of every run passed. The tool comes from npm, pinned in `package.json`, into
`node_modules` beside this file, together with a Node.js that is new enough; all the machine needs is npm. What the tool
runs without scoring it (extensions of the protocol, and what was added after a revision's release) is not counted here.

Needs nothing but the standard library: `--url` also works from a Python without the host's dependencies.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
from tests.support.processes import (  # noqa: E402 - found by the line above
    BUNDLED_SERVERS,
    HOST_COMMANDS,
    ProcessFailed,
    environment,
    free_port,
    migrate,
    running,
)

NODE: Final = HERE / "node_modules" / "node" / "bin" / "node"
TOOL: Final = HERE / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"

REVISIONS: Final = ("2025-11-25", "2026-07-28")
"""Protocol revisions whose requirements the tool has frozen, and that we serve."""

START_SECONDS: Final = 60.0
TOOL_SECONDS: Final = 600.0
"""One whole run of the tool. It gives each scenario 30 s itself."""

APPLICATION: Final = "gumcp_site.asgi:application"

# The tool names a scenario's result folder "server-<scenario>-<time>".
RESULT_FOLDER: Final = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


class RunnerError(Exception):
    """The run could not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Scenario:
    """The outcome of one scored scenario."""

    name: str
    checks: list[dict[str, Any]]
    """What the tool checked, as it wrote it; empty when the scenario did not run."""

    def told(self, status: str) -> list[str]:
        return [f"{check['id']}: {check.get('errorMessage', '')}" for check in self.checks if check["status"] == status]

    @property
    def failures(self) -> list[str]:
        # A scenario that checked nothing has shown nothing.
        if not any(check["status"] == "SUCCESS" for check in self.checks):
            return self.told("FAILURE") or ["no check ran"]
        return self.told("FAILURE")


def main() -> int:
    arguments = parse_arguments()
    revisions = REVISIONS if arguments.requirements == "both" else (arguments.requirements,)
    try:
        install_tool()
        with contextlib.ExitStack() as stack:
            url = arguments.url or stack.enter_context(running_host(arguments.server))
            passed = [
                run(url, revision, f"run {number} of {arguments.repeat}, " if arguments.repeat > 1 else "")
                for number in range(1, arguments.repeat + 1)
                for revision in revisions
            ]
    except RunnerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if all(passed) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="the reference server's URL, on localhost; without it a host is started")
    parser.add_argument(
        "--server", choices=("daphne", "uvicorn", "workers"), default="daphne", help="what serves that host"
    )
    parser.add_argument("--requirements", choices=(*REVISIONS, "both"), default="both")
    parser.add_argument("--repeat", type=int, default=1, help="how often to run everything")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def install_tool() -> None:
    """Install what `package.json` pins, unless it is there already."""
    pinned = json.loads((HERE / "package.json").read_text())["dependencies"]
    if NODE.exists() and all(installed_version(package) == version for package, version in pinned.items()):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise RunnerError("The conformance tool comes from npm, and there is no npm here. Install Node.js with npm.")
    # No lock file: it would hold the address of whichever registry this machine uses.
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if installed.returncode != 0 or not NODE.exists():
        raise RunnerError(f"npm could not install the conformance tool:\n{installed.stdout}{installed.stderr}")


def installed_version(package: str) -> str | None:
    try:
        return str(json.loads((HERE / "node_modules" / package / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError):
        return None


def run(url: str, revision: str, prefix: str) -> bool:
    """Run all scored scenarios of `revision` once, print what failed and how many passed; True if all did."""
    started = time.monotonic()
    scenarios = [Scenario(name, checks) for name, checks in results(url, revision).items()]
    failed = [scenario for scenario in scenarios if scenario.failures]
    for scenario in failed:
        print(f"FAILED {revision} {scenario.name}: {'; '.join(scenario.failures)}")
    for scenario in scenarios:
        for warning in scenario.told("WARNING"):
            print(f"warning {revision} {scenario.name}: {warning}")
    seconds = time.monotonic() - started
    print(f"{prefix}{revision}: {len(scenarios) - len(failed)} of {len(scenarios)} ({seconds:.1f} s)", flush=True)
    return not failed


def results(url: str, revision: str) -> dict[str, list[dict[str, Any]]]:
    """Return the checks of each scored scenario, in the tool's order."""
    checks: dict[str, list[dict[str, Any]]] = {name: [] for name in scored_scenarios(revision)}
    with tempfile.TemporaryDirectory(prefix="gumcp-conformance-") as output_dir:
        told = run_tool("server", "--url", url, "--requirements", revision, "--output-dir", output_dir)
        for file in sorted(Path(output_dir).glob("*/checks.json")):
            folder = RESULT_FOLDER.fullmatch(file.parent.name)
            if folder and folder["scenario"] in checks:
                checks[folder["scenario"]] += json.loads(file.read_text())
    if not any(checks.values()):
        raise RunnerError(f"The conformance tool left no results:\n{told}")
    return checks


def scored_scenarios(revision: str) -> list[str]:
    """Return what the tool counts for `revision`: the first list that it prints, which is that for servers."""
    names: list[str] = []
    for line in run_tool("list", "--requirements", revision).splitlines():
        if line.startswith("  - "):
            names.append(line.removeprefix("  - ").strip())
        elif names:
            return names
    raise RunnerError(f"The conformance tool lists no scenarios for {revision}.")


def run_tool(*arguments: str) -> str:
    """Return what the tool printed; its exit code says only whether some scenario failed, which we judge ourselves."""
    try:
        done = subprocess.run(
            [str(NODE), str(TOOL), *arguments], cwd=HERE, capture_output=True, text=True, timeout=TOOL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RunnerError(f"The conformance tool did not finish within {TOOL_SECONDS:.0f} s.") from None
    return done.stdout + done.stderr


@contextlib.contextmanager
def running_host(server: str) -> Iterator[str]:
    """Serve the project from a fresh data directory; yields the reference server's URL."""
    with tempfile.TemporaryDirectory(prefix="gumcp-conformance-") as folder:
        data_dir, port = Path(folder), free_port()
        arguments = (part.format(port=port, application=APPLICATION) for part in HOST_COMMANDS[server])
        try:
            migrate(data_dir)
            with running(
                [sys.executable, *arguments],
                env=environment(data_dir, GUMCP_SERVER_DIRS=str(BUNDLED_SERVERS)),
                log=data_dir / "host.log",
                is_ready=lambda: "everything" in served(f"http://localhost:{port}/health_check"),
                start_seconds=START_SECONDS,
            ):
                # By name, not address: the tool takes only URLs on localhost.
                yield f"http://localhost:{port}/everything/conformance"
        except ProcessFailed as error:
            raise RunnerError(f"The host does not serve everything: {error}") from None


def served(health_url: str) -> list[str]:
    """Return the names of the servers that a host serves."""
    with urllib.request.urlopen(health_url, timeout=5) as response:
        names: list[str] = json.load(response)["servers"]
        return names


if __name__ == "__main__":
    sys.exit(main())
