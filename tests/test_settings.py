"""The settings as the environment and `.env` make them."""

import importlib.util
import re
import runpy
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db.utils import ConnectionHandler
from django.test import override_settings

from gateway.conf import GatewaySettings, SettingsError, read_settings
from gateway.conf.reference import example, page
from gateway.host.serving import serving_limits
from gateway.serving import ServingLimits
from tests.support.processes import ROOT, manage, run

PAGE = ROOT / "docs" / "settings.md"
PRODUCTION = {"GUMCP_PUBLIC_URL": "https://mcp.example.com"}

WRONG = re.findall(
    r"^\| (environment|`\.env`) \| `(.+?)` \| `(.+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)
"""Where it stands, what is written, what is printed: the table of the page."""


def settings_of(folder: Path, file: str | bytes | None = None, **variables: str) -> GatewaySettings:
    """Read the settings of an environment that has nothing else, and of a `.env`."""
    if file is not None:
        (folder / ".env").write_bytes(file if isinstance(file, bytes) else file.encode())
    return GatewaySettings(read_settings(GatewaySettings, dict(variables), folder / ".env"))


def test_folder_that_the_user_may_not_enter_is_named_and_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    # Root may enter every folder.
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(SettingsError, match=f"This user may not enter {tmp_path}"):
        read_settings(GatewaySettings, {}, tmp_path / ".env")


@pytest.fixture
def django_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute the site's settings module with some variables; return what it defines."""

    def execute(**variables: str) -> SimpleNamespace:
        for name, value in {"GUMCP_DATA_DIR": str(tmp_path), **variables}.items():
            monkeypatch.setenv(name, value)
        return SimpleNamespace(**runpy.run_path(str(ROOT / "gumcp_site" / "settings.py")))

    return execute


# -- Wrong settings


@pytest.mark.parametrize(("place", "written", "printed"), WRONG, ids=[f"{row[0]} {row[1]}" for row in WRONG])
def test_wrong_setting_is_refused_with_the_line_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, written: str, printed: str
) -> None:
    # The page says what a host without database clients prints.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name, _, value = written.partition("=")
    file, variables = (None, {name: value}) if place == "environment" else (written.replace("⏎", "\n"), {})
    with pytest.raises(SettingsError) as raised:
        settings_of(tmp_path, file, **variables)
    assert str(raised.value) == printed


def test_page_shows_at_least_thirty_wrong_settings() -> None:
    assert len(WRONG) >= 30


def test_all_wrong_settings_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        settings_of(tmp_path, "GUMCP_AUHT=keys\n\nnonsense\n", GUMCP_PORT="x", GUMCP_DEBUG="y")
    assert [line.split()[0] for line in str(raised.value).splitlines()] == [
        "Line",
        "GUMCP_AUHT",
        "GUMCP_PORT",
        "GUMCP_DEBUG",
    ]


def test_line_that_cannot_be_read_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        settings_of(tmp_path, "# comment\n\nGUMCP_SECRET_KEY hunter2\n")
    assert "Line 3" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("content", ["GUMCP_PORT=1".encode("utf-16"), b"GUMCP_HOST=\xff"])
def test_file_that_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match=r"\.env must be a UTF-8 text"):
        settings_of(tmp_path, content)


def test_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        settings_of(tmp_path, GUMCP_PORT="9" * 10_000)
    assert len(str(raised.value)) < 200


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "command",
    [
        ("manage.py", "check"),
        ("-m", "daphne", "gumcp_site.asgi:application"),
        ("-m", "uvicorn", "gumcp_site.asgi:application"),
    ],
)
def test_process_with_a_wrong_setting_ends_with_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(sys.executable, *command, data_dir=tmp_path, GUMCP_AUHT="keys")
    assert done.returncode == 1
    assert done.stderr == "GUMCP_AUHT is not a setting (got 'keys'). Did you mean GUMCP_AUTH?\n"


# -- Right settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15", 15),
        ("0.5", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        (" 500 ms ", 0.5),
        ("1d", 86400),
    ],
)
def test_duration_takes_units(tmp_path: Path, text: str, seconds: float) -> None:
    assert settings_of(tmp_path, GUMCP_SESSION_IDLE_SECONDS=text).session_idle_seconds == seconds


@pytest.mark.parametrize(("text", "days"), [("7", 7), ("12h", 0.5), ("2d", 2)])
def test_duration_in_days_takes_units(tmp_path: Path, text: str, days: float) -> None:
    assert settings_of(tmp_path, GUMCP_SESSION_RETENTION_DAYS=text).session_retention_days == days


@pytest.mark.parametrize(("text", "size"), [("65536", 65536), ("64KiB", 65536), ("4 MiB", 4 << 20), ("1GiB", 1 << 30)])
def test_size_takes_units(tmp_path: Path, text: str, size: int) -> None:
    assert settings_of(tmp_path, GUMCP_MAX_BODY_BYTES=text).max_body_bytes == size


@pytest.mark.parametrize(
    "line",
    [
        "GUMCP_PORT=8001",
        "GUMCP_PORT = 8001",
        "GUMCP_PORT=8001 # note",
        'export GUMCP_PORT="8001"',
        "GUMCP_PORT=8001\r\nOTHER='x'\r\n",
        "\ufeffGUMCP_PORT=8001",
    ],
)
def test_line_of_the_file_is_read_as_it_is_meant(tmp_path: Path, line: str) -> None:
    assert settings_of(tmp_path, line).port == 8001


def test_environment_goes_before_the_file(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "GUMCP_PORT=8001\nGUMCP_HOST=::1", GUMCP_PORT="8002").port == 8002


def test_other_variables_of_the_file_are_for_the_servers(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WEATHER_TOKEN=a$b\nHOME_TOWN=x\nGUMCP_SECRET_KEY=s\n")
    variables = {"HOME_TOWN": "y"}
    read_settings(GatewaySettings, variables, tmp_path / ".env")
    # The host's own are not: fewer of its secrets are where servers look.
    assert variables == {"HOME_TOWN": "y", "WEATHER_TOKEN": "a$b"}


def test_another_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "other.env").write_text("GUMCP_PORT=8001")
    assert settings_of(tmp_path, "GUMCP_PORT=1", GUMCP_ENV_FILE="other.env").port == 8001
    assert settings_of(tmp_path, "GUMCP_PORT=1", GUMCP_ENV_FILE="").port == 8000


def test_variables_of_kubernetes_for_a_service_are_ignored(tmp_path: Path) -> None:
    settings_of(
        tmp_path,
        GUMCP_SERVICE_HOST="10.0.0.1",
        GUMCP_SERVICE_PORT_HTTP="80",
        GUMCP_PORT_80_TCP_ADDR="10.0.0.1",
        GUM="1",
        GCP_PROJECT="p",
    )


def test_every_default_is_allowed(tmp_path: Path) -> None:
    defaults = settings_of(tmp_path)
    assert {name for name in GatewaySettings.declared() if not hasattr(defaults.source, name)} == set()


@pytest.mark.parametrize("none", ["", "0"])
def test_limit_of_callers_that_is_empty_or_0_is_none(tmp_path: Path, none: str) -> None:
    names = [name for name in GatewaySettings.declared() if re.match("GUMCP_LIMIT_|GUMCP_MAX_SESSIONS_PER", name)]
    settings = settings_of(tmp_path, **dict.fromkeys(names, none))
    assert set(settings.rate_limits.values()) == {""}
    assert (settings.max_sessions_per_key, settings.max_sessions_per_address) == (0, 0)


def test_https_public_address_turns_on_keys(tmp_path: Path) -> None:
    assert settings_of(tmp_path).auth_mode == "open"
    assert settings_of(tmp_path, **PRODUCTION).auth_mode == "keys"
    assert settings_of(tmp_path, **PRODUCTION, GUMCP_AUTH="open").auth_mode == "open"
    assert settings_of(tmp_path, **PRODUCTION).trusted_proxies == ["127.0.0.1", "::1"]
    assert settings_of(tmp_path, **PRODUCTION, GUMCP_TRUSTED_PROXIES="").trusted_proxies == []


# -- Django's settings


def test_secret_key_is_kept_beside_the_database_and_readable_by_its_owner_only(
    tmp_path: Path, django_settings: Any
) -> None:
    first = django_settings().SECRET_KEY
    assert len(first) >= 50
    path = tmp_path / "secret_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first == django_settings().SECRET_KEY
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("secret_key")] == ["secret_key"]


@pytest.mark.usefixtures("processes")
def test_processes_that_start_at_once_share_one_secret_key(tmp_path: Path) -> None:
    code = "from gumcp_site import settings; print(settings.SECRET_KEY)"
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: run(sys.executable, "-c", code, data_dir=tmp_path).stdout, range(4)))
    assert len(keys[0]) > 50
    assert len(set(keys)) == 1


def test_secret_key_of_the_environment_is_used_and_not_written_down(tmp_path: Path, django_settings: Any) -> None:
    assert django_settings(GUMCP_SECRET_KEY="from-the-environment").SECRET_KEY == "from-the-environment"
    assert not (tmp_path / "secret_key").exists()


def test_defaults_are_safe(django_settings: Any) -> None:
    settings = django_settings()
    assert not settings.DEBUG
    assert settings.ALLOWED_HOSTS == ["localhost", "127.0.0.1", "[::1]"]
    assert (settings.GUMCP_HOST, settings.GUMCP_METRICS_HOST) == ("127.0.0.1", "127.0.0.1")


def test_ports_have_the_promised_defaults(tmp_path: Path) -> None:
    defaults = settings_of(tmp_path)
    assert (defaults.port, defaults.metrics_port) == (8000, 9091)


def test_public_url_sets_host_origin_and_secure_cookies(django_settings: Any) -> None:
    settings = django_settings(**PRODUCTION)
    assert "mcp.example.com" in settings.ALLOWED_HOSTS
    assert settings.CSRF_TRUSTED_ORIGINS == ["https://mcp.example.com"]
    assert settings.SESSION_COOKIE_SECURE


def test_lines_of_the_example_may_be_left_empty(tmp_path: Path, django_settings: Any) -> None:
    settings = django_settings(DATABASE_URL="", GUMCP_LIMITS_STORAGE_URL="", GUMCP_SECRET_KEY="")
    assert settings.DATABASES["default"]["NAME"] == str(tmp_path / "gumcp.sqlite3")
    assert settings.GUMCP_LIMITS_STORAGE_URL == "memory://"


def test_password_of_the_database_is_not_among_djangos_settings(django_settings: Any) -> None:
    settings = django_settings(DATABASE_URL="sqlite:////srv/other.sqlite3")
    assert settings.DATABASES["default"]["NAME"] == "/srv/other.sqlite3"
    assert not hasattr(settings, "DATABASE_URL")


def test_mail_server_is_djangos_own(django_settings: Any) -> None:
    settings = django_settings(GUMCP_EMAIL_URL="smtp+tls://me%40example.com:p%2Fw@mail.example.com")
    assert (settings.EMAIL_HOST, settings.EMAIL_PORT, settings.EMAIL_USE_TLS) == ("mail.example.com", 587, True)
    assert (settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD) == ("me@example.com", "p/w")
    settings = django_settings(GUMCP_EMAIL_URL="smtp+ssl://mail.example.com:4650")
    assert (settings.EMAIL_PORT, settings.EMAIL_USE_SSL, settings.EMAIL_USE_TLS) == (4650, True, False)
    assert not hasattr(django_settings(GUMCP_EMAIL_URL=""), "EMAIL_HOST")


def test_data_folder_that_cannot_be_made_stops_the_start(tmp_path: Path, django_settings: Any) -> None:
    (tmp_path / "file").touch()
    # Another copy of the class: the settings module was executed by itself, not imported.
    with pytest.raises(SettingsError, match=r"^GUMCP_DATA_DIR must be a folder that this user may write in: Not a dir"):
        django_settings(GUMCP_DATA_DIR=str(tmp_path / "file" / "var"))


def test_database_is_sqlite_in_wal_mode(django_settings: Any, django_db_blocker: Any) -> None:
    connection = ConnectionHandler(django_settings().DATABASES)["default"]
    with django_db_blocker.unblock(), closing(connection), connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)


def test_https_is_for_the_hosts_own_name_unless_more_is_asked_for(django_settings: Any) -> None:
    settings = django_settings(**PRODUCTION)
    assert settings.SECURE_HSTS_SECONDS > 0
    assert (settings.SECURE_HSTS_INCLUDE_SUBDOMAINS, settings.SECURE_HSTS_PRELOAD) == (False, False)
    more = django_settings(**PRODUCTION, GUMCP_HSTS_INCLUDE_SUBDOMAINS="true", GUMCP_HSTS_PRELOAD="true")
    assert (more.SECURE_HSTS_INCLUDE_SUBDOMAINS, more.SECURE_HSTS_PRELOAD) == (True, True)


def test_host_under_a_path_keeps_its_cookies_and_links_below_it(django_settings: Any) -> None:
    settings = django_settings(GUMCP_PUBLIC_URL="https://mcp.example.com/a/tools/")
    assert settings.FORCE_SCRIPT_NAME == "/a/tools"
    assert (settings.SESSION_COOKIE_PATH, settings.CSRF_COOKIE_PATH) == ("/a/tools/", "/a/tools/")
    # Browsers refuse __Host- with another path than /.
    assert settings.SESSION_COOKIE_NAME == "__Secure-sessionid"
    for path in ("a/tools/", "a/tools/health_check"):
        assert any(re.search(pattern, path) for pattern in settings.SECURE_REDIRECT_EXEMPT)
    assert django_settings(**PRODUCTION).SESSION_COOKIE_NAME == "__Host-sessionid"


@pytest.mark.parametrize("path", ["//evil", "/a//b", "/../x", "/a%20b", "/ü", "/a;b"])
def test_path_of_the_public_address_is_a_plain_one(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError, match="GUMCP_PUBLIC_URL"):
        settings_of(tmp_path, GUMCP_PUBLIC_URL=f"https://mcp.example.com{path}")


@pytest.mark.parametrize(("text", "names"), [("X-Api-Key, x-b", ["x-api-key", "x-b"]), ("*", ["*"]), ("", [])])
def test_header_names_are_read_in_lower_case(tmp_path: Path, text: str, names: list[str]) -> None:
    assert settings_of(tmp_path, GUMCP_ALLOWED_HEADERS=text).allowed_headers == names


def test_header_name_with_a_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GUMCP_ALLOWED_HEADERS"):
        settings_of(tmp_path, GUMCP_ALLOWED_HEADERS="X Api Key")


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("extra", [{}, {"GUMCP_SECRET_KEY": "x" * 25 + "abcdefghijklmnopqrstuvwxyz0123456789"}])
def test_check_deploy_is_clean_with_the_production_settings(tmp_path: Path, extra: dict[str, str]) -> None:
    done = manage("check", "--deploy", "--fail-level", "INFO", data_dir=tmp_path, **PRODUCTION, **extra)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_missing_server_directory_is_a_warning_of_the_check(tmp_path: Path) -> None:
    with override_settings(GUMCP_SERVER_DIRS=[tmp_path / "nowhere"]):
        (warning,) = run_checks()
    assert warning.id == "gateway.W001"
    assert "nowhere" in warning.msg
    assert "GUMCP_SERVER_DIRS" in str(warning.hint)


def test_our_daphne_has_the_same_limits_with_default_settings_as_without_any() -> None:
    # Streams, whose own limit knows which server they belong to, are to be first.
    limits = replace(serving_limits(), slow_reader_seconds=serving_limits().slow_reader_seconds - 2)
    assert limits == ServingLimits()


# -- What is written from the declarations


def test_example_file_and_page_are_in_step_with_the_declarations() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == example(), "run `make settings`"
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run `make settings`"


def test_example_file_has_every_setting_and_every_line_of_it_is_allowed(tmp_path: Path) -> None:
    lines = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example(), re.MULTILINE))
    assert list(lines) == list(GatewaySettings.declared())
    lines.pop("DATABASE_URL")  # needs a client
    settings_of(tmp_path, "\n".join(f"{name}={value}" for name, value in lines.items()))
