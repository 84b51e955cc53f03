"""Run official clients of every era against one running host, and print what worked as a table.

    python tests/matrix/run.py                                      # starts a host on Daphne
    python tests/matrix/run.py --server uvicorn
    python tests/matrix/run.py --url http://localhost:8000/everything/ada:key

Exit code 0: every client listed, called, received progress, got an error result, and left. Each runs in a process and
an environment of its own: the Python ones in `.venv-matrix-*` in the project's root, the TypeScript one in
`node_modules` beside this file; both are made on the first run, from what is pinned here and in `package.json`.

Needs nothing but the standard library itself, and npm with Node.js 18 or newer.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PROJECT: Final = HERE.parent.parent
sys.path.insert(0, str(PROJECT))

from tests.conformance.run import RunnerError, running_host  # noqa: E402 - found by the line above
from tests.support.environments import steps_to_make  # noqa: E402

CLIENT_SECONDS: Final = 60.0
"""One client from its start to its exit."""

COLUMNS: Final = ("lists", "calls", "progress", "error result", "leaves")


@dataclass(frozen=True)
class Client:
    """One client program, and which environment it runs in."""

    name: str
    requirements: tuple[str, ...]
    """What uv installs for it; what npm installs is in `package.json`."""
    script: str
    transport: str
    protocol: str
    """The protocol version that it should end up with."""
    argument: str = ""

    @property
    def progress(self) -> tuple[list[int], ...]:
        """What it may have seen of the progress of `test_tool_with_progress`."""
        # The TypeScript SDK drops progress that it reads together with the result (its issue 2580).
        return ([0, 50, 100], [0, 50]) if self.script.endswith(".mjs") else ([0, 50, 100],)


PYTHON_2: Final = ("mcp==2.3.0",)
PYTHON_1: Final = ("mcp==1.30.0",)
# It uses a private function of pydantic that was removed in 2.13.
PYTHON_1_OLD: Final = ("mcp==1.4.1", "pydantic==2.12.5")

CLIENTS: Final = (
    Client("Python SDK 2.3, mode auto", PYTHON_2, "python_2.py", "Streamable HTTP", "2026-07-28", "auto"),
    Client("Python SDK 2.3, mode legacy", PYTHON_2, "python_2.py", "Streamable HTTP", "2025-11-25", "legacy"),
    Client("Python SDK 1.30", PYTHON_1, "python_1_30.py", "Streamable HTTP", "2025-11-25", "http"),
    Client("Python SDK 1.30", PYTHON_1, "python_1_30.py", "HTTP+SSE", "2025-11-25", "sse"),
    Client("Python SDK 1.4.1", PYTHON_1_OLD, "python_1_4.py", "HTTP+SSE", "2024-11-05"),
    Client("TypeScript SDK 1.32", (), "typescript.mjs", "Streamable HTTP", "2025-11-25", "http"),
    Client("TypeScript SDK 1.32", (), "typescript.mjs", "HTTP+SSE", "2025-11-25", "sse"),
)


@dataclass(frozen=True)
class Outcome:
    """What one client did."""

    client: Client
    seen: dict[str, Any]
    """What it printed; empty when it printed nothing that can be read."""
    has_left: bool
    """Whether its process ended by itself, and without an error."""
    told: str

    @property
    def checks(self) -> dict[str, bool]:
        return dict(
            zip(
                COLUMNS,
                (
                    self.seen.get("tools", 0) > 20,
                    self.seen.get("text") == "This is a simple text response for testing.",
                    self.seen.get("progress") in self.client.progress,
                    self.seen.get("is_error") is True,
                    self.has_left,
                ),
                strict=True,
            )
        )

    @property
    def is_good(self) -> bool:
        return all(self.checks.values()) and self.seen.get("protocol") == self.client.protocol


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="the reference server's URL with a session key; without it a host is started")
    parser.add_argument(
        "--server", choices=("daphne", "uvicorn", "workers"), default="daphne", help="what serves that host"
    )
    arguments = parser.parse_args()
    try:
        commands = [command(client) for client in CLIENTS]
        with contextlib.ExitStack() as stack:
            url = arguments.url or f"{stack.enter_context(running_host(arguments.server)).rpartition('/')[0]}/ada:key"
            outcomes = [
                run(client, [*words, url, *filter(None, [client.argument])])
                for client, words in zip(CLIENTS, commands, strict=True)
            ]
    except RunnerError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.is_good]
    for outcome in failed:
        print(f"\n{outcome.client.name}, {outcome.client.transport}: {outcome.seen}\n{outcome.told}", file=sys.stderr)
    return 1 if failed else 0


def command(client: Client) -> list[str]:
    """Return the words that start `client`, having installed what it needs."""
    script = str(HERE / "clients" / client.script)
    return [python_with(client.requirements) if client.requirements else node(), script]


def python_with(requirements: tuple[str, ...]) -> str:
    """Return a Python that has `requirements`, in an environment of its own."""
    folder = PROJECT / f".venv-matrix-{requirements[0].replace('==', '-')}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != f"{sys.version} {requirements}":
        shutil.rmtree(folder, ignore_errors=True)
        for step in steps_to_make(folder, *requirements):
            install(step, PROJECT)
        stamp.write_text(f"{sys.version} {requirements}")
    return str(python)


def node() -> str:
    """Return Node.js, having installed what `package.json` pins unless it is there already."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        raise RunnerError("The TypeScript client needs Node.js 18 or newer with npm. Install it.")
    pinned = json.loads((HERE / "package.json").read_text())["dependencies"]
    for package, version in pinned.items():
        manifest = HERE / "node_modules" / package / "package.json"
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != version:
            # No lock file: it would hold the address of whichever registry this machine uses.
            install([npm, "install", "--no-audit", "--no-fund", "--no-package-lock"], HERE)
    return program


def install(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunnerError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def run(client: Client, words: list[str]) -> Outcome:
    """Run one client to its end."""
    # A proxy of this machine is none of the test's business, and neither are packages beside the environment's own.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and name != "PYTHONPATH"
    }
    try:
        done = subprocess.run(
            words, cwd=HERE, env=environment, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(client, {}, False, f"did not end within {CLIENT_SECONDS:.0f} s")
    try:
        seen = json.loads(done.stdout)
    except ValueError:
        seen = {}
    return Outcome(client, seen, done.returncode == 0, done.stderr)


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as Markdown."""
    rows = [("Client", "Transport", "Protocol", *COLUMNS), ("---",) * (3 + len(COLUMNS))]
    for outcome in outcomes:
        marks = ("yes" if passed else "NO" for passed in outcome.checks.values())
        rows.append((outcome.client.name, outcome.client.transport, outcome.seen.get("protocol", "none"), *marks))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
