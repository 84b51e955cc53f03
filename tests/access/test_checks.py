from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.test import override_settings

PUBLIC = "https://mcp.example.com"


def found(**settings: Any) -> dict[str | None, str]:
    """Id -> hint of what the host's own checks find."""
    with override_settings(GUMCP_SERVER_DIRS=[], **settings):
        return {message.id: message.hint or "" for message in run_checks() if str(message.id).startswith("gateway.")}


def test_default_settings_are_clean() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"GUMCP_AUTH": "open", "GUMCP_PUBLIC_URL": PUBLIC, "GUMCP_TRUSTED_PROXIES": ["127.0.0.1"]}, "gateway.E001"),
        ({"GUMCP_AUTH": "open", "GUMCP_HOST": "0.0.0.0"}, "gateway.E002"),
        (
            {"GUMCP_AUTH": "open", "GUMCP_HOST": "0.0.0.0", "GUMCP_ALLOW_NETWORK_WITHOUT_KEYS": True},
            "gateway.W002",
        ),
        ({"GUMCP_LIMIT_CALLS_PER_KEY": "many"}, "gateway.E003"),
        ({"GUMCP_TRUSTED_PROXIES": ["proxy.example.com"]}, "gateway.E004"),
        ({"GUMCP_LIMITS_STORAGE_URL": "redis://127.0.0.1"}, "gateway.E005"),
        ({"GUMCP_AUTH": "keys", "GUMCP_PUBLIC_URL": PUBLIC, "GUMCP_TRUSTED_PROXIES": []}, "gateway.W003"),
        ({"GUMCP_TRUSTED_PROXIES": ["0.0.0.0/0"]}, "gateway.W004"),
        (
            {"GUMCP_AUTH": "keys", "GUMCP_PUBLIC_URL": PUBLIC, "GUMCP_TRUSTED_PROXIES": ["127.0.0.1"], "DEBUG": True},
            "gateway.W005",
        ),
    ],
)
def test_unsafe_setting_is_found_with_a_way_to_mend_it(
    settings: dict[str, Any], check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    checks = found(**settings)
    assert list(checks) == [check]
    assert checks[check]


@pytest.mark.parametrize("name", ["secret_key", "gumcp.sqlite3", "gumcp.sqlite3-wal", "gumcp.sqlite3-shm"])
def test_file_that_others_may_read_is_found(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for kept in ("secret_key", "gumcp.sqlite3", "gumcp.sqlite3-wal", "gumcp.sqlite3-shm"):
        (tmp_path / kept).touch(0o600)
    database = {**settings.DATABASES["default"], "NAME": str(tmp_path / "gumcp.sqlite3")}
    options = {"GUMCP_DATA_DIR": tmp_path, "DATABASES": {"default": database}}
    with pytest.warns(UserWarning, match="Overriding setting DATABASES"):
        assert found(**options) == {}
    (tmp_path / name).chmod(0o640)
    with pytest.warns(UserWarning, match="Overriding setting DATABASES"):
        checks = found(**options)
    tmp_path.chmod(0o700)
    with pytest.warns(UserWarning, match="Overriding setting DATABASES"):
        assert found(**options) == {}
    assert checks == {"gateway.W007": f"Run `chmod 600 {tmp_path / name}`."}


def test_check_for_deployment_says_in_the_hosts_terms_that_https_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    call_command("check", deploy=True)
    printed = capsys.readouterr().err
    assert "gateway.W006" in printed
    assert "set GUMCP_PUBLIC_URL=https://" in printed
    assert "security." not in printed


@pytest.mark.parametrize(
    "settings",
    [
        {"GUMCP_AUTH": "keys", "GUMCP_HOST": "0.0.0.0"},
        {"GUMCP_AUTH": "keys", "GUMCP_PUBLIC_URL": PUBLIC, "GUMCP_TRUSTED_PROXIES": ["127.0.0.1", "unix"]},
        {"GUMCP_LIMIT_CALLS_PER_KEY": "", "GUMCP_LIMIT_FAILED_LOGINS": "5 per 2 hours"},
    ],
)
def test_safe_setting_is_clean(settings: dict[str, Any]) -> None:
    assert found(**settings) == {}
