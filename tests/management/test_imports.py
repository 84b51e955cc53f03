"""What a command must not import: a start is for the most part imports, and these are heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

SDK = {"mcp", "mcp_types", "pydantic", "starlette", "uvicorn", "httpx2", "anyio"}
SERVING = {"twisted", "autobahn", "daphne", "jsonschema", "gateway.serving", "gateway.transports", "gateway.endpoints"}

pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        (["check"], SDK | SERVING | {"gateway.catalog.discovery"}),
        (["list_servers"], SERVING | {"limits", "redis"}),
        (["call", "simple-tools-server", "list-data"], SERVING | {"redis"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_command_does_without_what_it_does_not_need(command: list[str], forbidden: set[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "manage.py", *command],
        cwd=ROOT,
        env={"PATH": "", "GUMCP_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "gateway.apps" in imported
    assert imported & forbidden == set()
