"""Installs the wheel into an empty environment, and serves with it from an empty folder. `make wheel` builds it.

Usage: check_wheel.py WHEEL. Exit status 1 and the reason if something does not work.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 60


def main(wheel: Path) -> None:
    """Install, ask for the version, write a server, call it, serve it."""
    with tempfile.TemporaryDirectory(prefix="gumcp-wheel-") as folder:
        environment, home = Path(folder, "environment"), Path(folder, "home")
        home.mkdir()
        install = ["uv", "pip", "install", "--quiet", "--python", str(environment)]
        run("uv", "venv", "--quiet", "--python", sys.executable, str(environment))
        run(*install, "--require-hashes", "-r", str(ROOT / "requirements.lock"))
        run(*install, "--no-deps", str(wheel))
        gumcp = str(environment / "bin" / "gumcp")
        print(run(gumcp, "--version", cwd=home).strip())
        run(gumcp, "startserver", "hello", cwd=home)
        answer = run(gumcp, "call", "hello", "greet", "name=Ada", cwd=home)
        assert "Ada" in answer, answer
        check_serving(gumcp, home)
        print("The wheel installs, and serves.")


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a command to its end and return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_serving(gumcp: str, home: Path) -> None:
    """Serve from `home`, and ask for what a user and an operator need: health, the server, and the admin's files."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"GUMCP_PORT": str(port), "GUMCP_METRICS_PORT": "0"}
    process = subprocess.Popen([gumcp, "serve", "--prepare"], cwd=home, env=os.environ | settings)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                health = json.loads(fetch(port, "/health_check"))
                break
            except urllib.error.URLError:
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit("gumcp serve does not answer.")
                time.sleep(0.1)
        assert health["servers"] == ["hello"], health
        assert b"csrfmiddlewaretoken" in fetch(port, "/admin/login/")
        fetch(port, "/static/console/console.css")
        fetch(port, "/static/admin/css/base.css")
    finally:
        process.terminate()
        status = process.wait(SECONDS)
    assert status == 0, f"gumcp serve ended with status {status}"


def fetch(port: int, path: str) -> bytes:
    """Return the body of a page; raise `URLError` for any status but 200."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
