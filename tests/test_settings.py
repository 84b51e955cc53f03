"""The settings as the environment makes them: each in a process of its own."""

import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.host.serving import serving_limits
from gateway.serving import ServingLimits
from tests.support.host_process import ROOT, environment, manage

PRODUCTION = {"GUMCP_PUBLIC_URL": "https://mcp.example.com"}


def evaluate(expression: str, data_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Print an expression over the settings."""
    code = f"from gumcp_site import settings; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(data_dir, **settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def value(expression: str, data_dir: Path, **settings: str) -> str:
    done = evaluate(expression, data_dir, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_secret_key_is_kept_beside_the_database_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first = value("settings.SECRET_KEY", tmp_path)
    assert len(first) >= 50
    path = tmp_path / "secret_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert value("settings.SECRET_KEY", tmp_path) == first
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("secret_key")] == ["secret_key"]


def test_processes_that_start_at_once_share_one_secret_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: value("settings.SECRET_KEY", tmp_path), range(4)))
    assert len(set(keys)) == 1


def test_secret_key_of_the_environment_is_used_and_not_written_down(tmp_path: Path) -> None:
    assert value("settings.SECRET_KEY", tmp_path, GUMCP_SECRET_KEY="from-the-environment") == "from-the-environment"
    assert not (tmp_path / "secret_key").exists()


def test_defaults_are_safe(tmp_path: Path) -> None:
    facts = "settings.DEBUG, settings.ALLOWED_HOSTS, settings.GUMCP_HOST, settings.GUMCP_METRICS_HOST"
    assert value(f"({facts})", tmp_path) == "(False, ['localhost', '127.0.0.1', '[::1]'], '127.0.0.1', '127.0.0.1')"


def test_ports_have_the_promised_defaults(tmp_path: Path) -> None:
    env = environment(tmp_path)
    del env["GUMCP_METRICS_PORT"]
    code = "from gumcp_site import settings; print(settings.GUMCP_PORT, settings.GUMCP_METRICS_PORT)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=env, text=True) == "8000 9091\n"


def test_database_is_sqlite_in_wal_mode(tmp_path: Path) -> None:
    assert manage("migrate", "--verbosity", "0", data_dir=tmp_path).returncode == 0
    code = (
        "import django; django.setup(); from django.db import connection as c; k = c.cursor();"
        "k.execute('PRAGMA journal_mode'); print(k.fetchone()[0])"
    )
    env = {**environment(tmp_path), "DJANGO_SETTINGS_MODULE": "gumcp_site.settings", "GUMCP_LOG_LEVEL": "ERROR"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=env, text=True).strip() == "wal"


@pytest.mark.parametrize("extra", [{}, {"GUMCP_SECRET_KEY": "x" * 25 + "abcdefghijklmnopqrstuvwxyz0123456789"}])
def test_check_deploy_is_clean_with_the_production_settings(tmp_path: Path, extra: dict[str, str]) -> None:
    done = manage("check", "--deploy", "--fail-level", "INFO", data_dir=tmp_path, **PRODUCTION, **extra)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_check_is_clean_with_the_defaults(tmp_path: Path) -> None:
    done = manage("check", "--fail-level", "INFO", data_dir=tmp_path)
    assert done.returncode == 0, done.stderr


def test_public_url_sets_host_origin_and_secure_cookies(tmp_path: Path) -> None:
    facts = "'mcp.example.com' in settings.ALLOWED_HOSTS, settings.CSRF_TRUSTED_ORIGINS, settings.SESSION_COOKIE_SECURE"
    assert value(f"({facts})", tmp_path, **PRODUCTION) == "(True, ['https://mcp.example.com'], True)"


@pytest.mark.parametrize("url", ["mcp.example.com", "ftp://mcp.example.com", "https://"])
def test_public_url_that_is_none_stops_the_start_with_a_sentence(tmp_path: Path, url: str) -> None:
    done = evaluate("1", tmp_path, GUMCP_PUBLIC_URL=url)
    assert done.returncode != 0
    assert "GUMCP_PUBLIC_URL must look like" in done.stderr


LIMITS_OF_CALLERS = (
    "GUMCP_LIMIT_REQUESTS_PER_KEY",
    "GUMCP_LIMIT_REQUESTS_PER_ADDRESS",
    "GUMCP_LIMIT_CALLS_PER_KEY",
    "GUMCP_LIMIT_FAILED_KEYS",
    "GUMCP_LIMIT_FAILED_LOGINS",
    "GUMCP_MAX_SESSIONS_PER_KEY",
    "GUMCP_MAX_SESSIONS_PER_ADDRESS",
)


@pytest.mark.parametrize("none", ["", "0"])
def test_limit_of_callers_that_is_empty_or_0_is_none(tmp_path: Path, none: str) -> None:
    settings = dict.fromkeys(LIMITS_OF_CALLERS, none)
    facts = ", ".join(f"settings.{name}" for name in LIMITS_OF_CALLERS)
    assert value(f"({facts})", tmp_path, **settings) == "('', '', '', '', '', 0, 0)"
    # As the host reads them too.
    done = manage("check", "--fail-level", "INFO", data_dir=tmp_path, **settings)
    assert done.returncode == 0, done.stderr


def test_limits_of_callers_are_read(tmp_path: Path) -> None:
    settings = {"GUMCP_LIMIT_CALLS_PER_KEY": " 7/hour ", "GUMCP_MAX_SESSIONS_PER_KEY": "7"}
    facts = "settings.GUMCP_LIMIT_CALLS_PER_KEY, settings.GUMCP_MAX_SESSIONS_PER_KEY"
    assert value(f"({facts})", tmp_path, **settings) == "('7/hour', 7)"
    assert evaluate("1", tmp_path, GUMCP_MAX_SESSIONS_PER_KEY="many").returncode != 0


def test_missing_server_directory_is_a_warning_of_the_check(tmp_path: Path) -> None:
    done = manage("check", data_dir=tmp_path, GUMCP_SERVER_DIRS=str(tmp_path / "nowhere"))
    assert "gateway.W001" in done.stderr
    assert "GUMCP_SERVER_DIRS" in done.stderr


def test_environment_example_names_every_setting() -> None:
    example = ROOT / ".env.example"
    read = set(re.findall(r"\"(GUMCP_[A-Z_]+|DATABASE_URL)\"", (ROOT / "gumcp_site" / "settings.py").read_text()))
    named = set(re.findall(r"^#?\s*(GUMCP_[A-Z_]+|DATABASE_URL)=", example.read_text(), re.MULTILINE))
    assert read == named


def test_our_daphne_has_the_same_limits_with_default_settings_as_without_any() -> None:
    # Streams, whose own limit knows which server they belong to, are to be first.
    limits = replace(serving_limits(), slow_reader_seconds=serving_limits().slow_reader_seconds - 2)
    assert limits == ServingLimits()


def test_lines_of_the_example_may_be_left_empty(tmp_path: Path) -> None:
    empty = {"DATABASE_URL": "", "GUMCP_LIMITS_STORAGE_URL": "", "GUMCP_SECRET_KEY": ""}
    assert value("settings.DATABASES['default']['NAME']", tmp_path, **empty) == str(tmp_path / "gumcp.sqlite3")
    assert value("settings.GUMCP_LIMITS_STORAGE_URL", tmp_path, **empty) == "memory://"
