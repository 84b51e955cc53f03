"""System checks for access: `manage.py check`. Each has a stable id and a hint how to fix what it found."""

import importlib.util
import shlex
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connection

from gateway.conf import conf
from gateway.http.addresses import is_loopback
from gateway.http.listening import PERMISSION
from gateway.http.proxies import TrustedProxies

OTHERS: Final = 0o077
OTHERS_MAY_ENTER: Final = 0o011
"""Bits of the mode of a file, and of a folder, for anybody but its owner."""

_USE_KEYS: Final = "Set GUMCP_AUTH=keys and make keys with `manage.py create_key USER`."


@register(Tags.security)
def network_needs_keys(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.E001: a public host without keys. E002: a network address without keys. W002: the same, allowed."""
    if conf.auth_mode != "open":
        return []
    is_reached = not is_loopback(conf.host)
    if not (conf.is_production or is_reached):
        return []
    if conf.allows_network_without_keys:
        text = "Anybody who can reach this host can use every server as any user: it runs without keys."
        return [Warning(text, hint=f"{_USE_KEYS} Then remove {PERMISSION}.", id="gateway.W002")]
    found: list[CheckMessage] = []
    if conf.is_production:
        text = "The host has a public https address (GUMCP_PUBLIC_URL) and runs without keys. It will not start."
        found.append(Error(text, hint=_USE_KEYS, id="gateway.E001"))
    if is_reached:
        text = f"The host would listen on {conf.host} (GUMCP_HOST) without keys. It will not start."
        found.append(Error(text, hint=f"{_USE_KEYS} Or set GUMCP_HOST=127.0.0.1.", id="gateway.E002"))
    return found


@register(Tags.security)
def limits_are_readable(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.E003: a limit is malformed. E005: limits are to be counted in Redis, whose client is not installed."""
    # Imported here: most commands run no checks, and this takes long.
    from gateway.access.limits import IN_MEMORY, RateLimits

    found: list[CheckMessage] = []
    for rule, text in conf.rate_limits.items():
        try:
            RateLimits({rule: text})
        except ValueError:
            message = f"The limit of {rule} is malformed: {text!r}."
            hint = 'Write it as "600/minute" or "10 per 5 minutes"; leave it empty for no limit.'
            found.append(Error(message, hint=hint, id="gateway.E003"))
    storage = conf.limits_storage_url
    if storage != IN_MEMORY and "redis" in storage.partition(":")[0] and importlib.util.find_spec("redis") is None:
        message = "GUMCP_LIMITS_STORAGE_URL names Redis, and Python's client for it is not installed."
        found.append(Error(message, hint="Install the package redis, or use memory://.", id="gateway.E005"))
    return found


@register(Tags.security)
def proxies_are_readable(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.E004: not an address. W003: https without a trusted proxy. W004: every address is trusted."""
    try:
        TrustedProxies(conf.trusted_proxies)
    except ValueError as error:
        hint = "List addresses and networks: GUMCP_TRUSTED_PROXIES=127.0.0.1,10.0.0.0/8; or unix for Unix sockets."
        return [Error(f"GUMCP_TRUSTED_PROXIES has a malformed entry: {error}.", hint=hint, id="gateway.E004")]
    if any(proxy.endswith("/0") for proxy in conf.trusted_proxies):
        text = "GUMCP_TRUSTED_PROXIES trusts every address: any client can choose the address it is counted under."
        return [Warning(text, hint="Name the proxy's own address.", id="gateway.W004")]
    if conf.is_production and not conf.trusted_proxies:
        text = "The host has a public https address, and no proxy is trusted."
        hint = (
            "Set GUMCP_TRUSTED_PROXIES to the address of the proxy in front, such as 127.0.0.1. Otherwise all clients "
            "share the limits of one address, and the admin redirects to https again and again."
        )
        return [Warning(text, hint=hint, id="gateway.W003")]
    return []


@register(Tags.security, deploy=True)
def deployment_has_https(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.W006: a host that is to be deployed has no public https address."""
    if conf.is_production:
        return []
    text = "The host has no public https address. Cookies and keys can be read on the way."
    hint = (
        "Put a proxy with TLS in front and set GUMCP_PUBLIC_URL=https://…, such as https://mcp.example.com. That turns "
        "on keys, secure cookies, HSTS and the redirect to HTTPS. A host that only this machine uses needs none of it."
    )
    return [Warning(text, hint=hint, id="gateway.W006")]


@register(Tags.security)
def debug_is_local(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.W005: debug pages on a public address."""
    if settings.DEBUG and conf.is_production:
        text = "GUMCP_DEBUG is on and the host has a public address: error pages show code and settings to anybody."
        return [Warning(text, hint="Unset GUMCP_DEBUG.", id="gateway.W005")]
    return []


@register(Tags.security)
def files_are_private(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.W007: other users of this machine may read the secret key or the database."""
    database = Path(str(settings.DATABASES["default"]["NAME"]))
    files = [Path(settings.GUMCP_DATA_DIR) / "secret_key"]
    if connection.vendor == "sqlite":
        files += [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    readable = [str(file) for file in files if _is_open_to_others(file)]
    if not readable:
        return []
    names = " ".join(shlex.quote(name) for name in readable)
    text = f"Other users of this machine may read or write {', '.join(readable)}: password hashes, sessions, secrets."
    return [Warning(text, hint=f"Run `chmod 600 {names}`.", id="gateway.W007")]


def _is_open_to_others(file: Path) -> bool:
    if not file.is_file() or not file.stat().st_mode & OTHERS:
        return False
    return bool(file.parent.stat().st_mode & OTHERS_MAY_ENTER)
