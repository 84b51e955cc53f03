"""What a start does without: it is for the most part imports, some of which are heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.checks.registry import registry

from gateway.management.commands.serve import Command
from tests.support.processes import ROOT

SDK = {"mcp", "mcp_types", "pydantic", "starlette", "uvicorn", "httpx2", "anyio"}
PAGES = {"gateway.console.admin", "gateway.access.admin", "gateway.records.admin", "gumcp_site.urls"}
SERVING = {"twisted", "autobahn", "daphne", "jsonschema", "gateway.serving", "gateway.transports", "gateway.endpoints"}

pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        (["check"], SDK | SERVING | {"gateway.catalog.discovery"}),
        (["list_servers"], SERVING | PAGES | {"limits", "redis", "django_prometheus", "prometheus_client"}),
        (["call", "simple-tools-server", "list-data"], SERVING | PAGES | {"redis", "django_prometheus"}),
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


def run_code(code: str, data_dir: Path) -> str:
    """Run `code` in a new interpreter, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            "PATH": "",
            "DJANGO_SETTINGS_MODULE": "gumcp_site.settings",
            "GUMCP_DATA_DIR": str(data_dir),
            "GUMCP_METRICS_PORT": "0",
            "GUMCP_LOG_LEVEL": "CRITICAL",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_host_imports_pages_when_somebody_asks_for_one(tmp_path: Path) -> None:
    imported = set(
        run_code("import sys, gumcp_site.asgi as site; site.host.close(); print(*sys.modules)", tmp_path).split()
    )
    assert "gateway.host.host" in imported
    assert imported & PAGES == set()


def test_checks_of_the_admin_see_all_pages(tmp_path: Path) -> None:
    code = (
        "import django, sys; django.setup(); from django.core.checks import run_checks;"
        "run_checks(tags=['admin']); print(*sys.modules)"
    )
    assert set(run_code(code, tmp_path).split()) >= PAGES - {"gumcp_site.urls"}


def test_command_that_loads_servers_does_not_look_for_garbage_meanwhile(tmp_path: Path) -> None:
    code = (
        "import gc; from gateway.management.command_line import run;"
        "looks = []; gc.callbacks.append(lambda phase, facts: looks.append(phase));"
        "run(['manage.py', 'list_servers']); print(len(looks))"
    )
    assert run_code(code, tmp_path).splitlines()[-1] == "0"


def test_command_does_not_look_through_what_was_imported_when_it_ends(tmp_path: Path) -> None:
    code = (
        "import gc; from gateway.management.command_line import run;"
        "run(['manage.py', 'check']); print(len(gc.get_objects()) < 1000 < gc.get_freeze_count())"
    )
    assert run_code(code, tmp_path).splitlines()[-1] == "True"


def test_serve_checks_what_an_operator_has_set_and_not_the_code() -> None:
    found = {check.__name__ for check in registry.get_checks() if {*check.tags} & {*Command.requires_system_checks}}  # type: ignore[attr-defined]
    assert {"network_needs_keys", "limits_are_readable", "files_are_private", "server_dirs_exist"} <= found
    assert found.isdisjoint({"check_admin_pages", "check_url_config", "check_all_models"})
