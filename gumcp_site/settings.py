"""Django settings of a guMCP host.

To add a setting of the host: declare it in `gateway/conf/__init__.py`, one place, and run `make settings`. All of them
are in Django's settings under their variable's name, from here on. This module turns some into Django's own.
"""

import contextlib
import os
import re
from pathlib import Path

from django.core.management.utils import get_random_secret_key

from gateway.conf import GatewaySettings, SettingsError, read_settings
from gateway.conf.kinds import split_url
from gateway.conf.redis import redis_options

_code = Path(__file__).resolve().parent.parent
# Relative paths and `.env` belong to the checkout. An installed host has none: there they belong to the current folder.
BASE_DIR = _code if (_code / "manage.py").exists() else Path.cwd()

_values = read_settings(GatewaySettings, os.environ, BASE_DIR / ".env")
_env = GatewaySettings(_values)
# GUMCP_… each. DATABASE_URL is left out: DATABASES has it, and Django's error pages would show the password in it.
globals().update({name: value for name, value in vars(_values).items() if name.startswith("GUMCP_")})


def _kept_secret_key(path: Path) -> str:
    """The random secret key kept beside the database; made on first use, readable by its owner only."""
    if not path.exists():
        # Written aside and linked into place: of several processes that start at once one key wins, and none reads
        # half of it.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(get_random_secret_key())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text(encoding="ascii").strip()


# -- What a production host sets -------------------------------------------------------------------------------------

_public = split_url(_env.public_url) if _env.public_url else None
_public_origin = f"{_public.scheme}://{_public.netloc}" if _public else ""
_is_https = _env.is_production

DEBUG = _env.debug
GUMCP_DATA_DIR = BASE_DIR / _env.data_dir
GUMCP_SERVER_DIRS = [BASE_DIR / path for path in _env.server_dirs]
STATIC_ROOT = GUMCP_DATA_DIR / "static"
try:
    # The database holds password hashes and who used what: only its owner may read it.
    GUMCP_DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
    SECRET_KEY = _env.secret_key or _kept_secret_key(GUMCP_DATA_DIR / "secret_key")
except OSError as _error:
    raise SettingsError(
        f"GUMCP_DATA_DIR must be a folder that this user may write in: {_error.strerror} ({_error.filename})."
    ) from None

ALLOWED_HOSTS: list[str] = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    *([_public.hostname] if _public and _public.hostname else []),
    *_env.allowed_hosts,
]
CSRF_TRUSTED_ORIGINS = [_public_origin] if _public_origin else []
GUMCP_ALLOWED_ORIGINS = [*CSRF_TRUSTED_ORIGINS, *_env.allowed_origins]

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _is_https
# A host under a path shares its name with others, whose pages are not to get its cookies.
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{_env.public_path}/"
if _is_https:
    # Browsers take a cookie of such a name over HTTPS only; with __Host- also for this host alone and all of its paths.
    _prefix = "__Secure-" if _env.public_path else "__Host-"
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = f"{_prefix}sessionid", f"{_prefix}csrftoken"
SESSION_COOKIE_AGE = 12 * 3600
CSRF_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_SSL_REDIRECT = _is_https
# Probes ask the process itself, over plain HTTP.
SECURE_REDIRECT_EXEMPT = [rf"^{re.escape(_env.public_path.lstrip('/'))}/?(health_check)?$"]
SECURE_HSTS_SECONDS = 31_536_000 if _is_https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = _is_https and _env.hsts_include_subdomains
SECURE_HSTS_PRELOAD = _is_https and _env.hsts_preload
X_FRAME_OPTIONS = "DENY"
# HSTS for other names than the host's own is asked for by settings: GUMCP_HSTS_….
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
if not _is_https:
    # HSTS, the redirect to HTTPS and secure cookies. gateway.W006 says in our terms what turns all of them on.
    SILENCED_SYSTEM_CHECKS += ["security.W004", "security.W008", "security.W012", "security.W016"]

# -- Django ----------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "gateway",
    "gateway.access",
    "gateway.records",
    "gateway.alerts",
    "gateway.console.apps.ConsoleConfig",
    "gateway.console.apps.ConsoleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
]

MIDDLEWARE = [
    "gateway.endpoints.error_reports.RedactErrorPages",
    "gateway.http.page_metrics.CountBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "gateway.http.page_headers.ContentSecurityPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "gateway.access.login_throttle.LoginThrottle",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "gateway.http.page_metrics.CountAfterMiddleware",
]

DEFAULT_EXCEPTION_REPORTER = "gateway.endpoints.error_reports.RedactingReporter"
DEFAULT_EXCEPTION_REPORTER_FILTER = "gateway.endpoints.error_reports.RedactingFilter"

ROOT_URLCONF = "gumcp_site.urls"
ASGI_APPLICATION = "gumcp_site.asgi.application"
APPEND_SLASH = False
FORCE_SCRIPT_NAME = _env.public_path or None
# Bodies are held in memory: GUMCP_MAX_BODY_BYTES is the longest.
FILE_UPLOAD_MAX_MEMORY_SIZE = _env.max_body_bytes

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": _env.database or {"ENGINE": "django.db.backends.sqlite3", "NAME": str(GUMCP_DATA_DIR / "gumcp.sqlite3")}
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["ENGINE"] = "gateway.private_sqlite"
    DATABASES["default"]["OPTIONS"] = {
        # WAL: the recorder's writes do not hold up the admin's reads. IMMEDIATE: a writer waits for the lock
        # (timeout, seconds) instead of failing when it upgrades from a read.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        "transaction_mode": "IMMEDIATE",
        "timeout": 5,
    }
# EMAIL_HOST and so on. Only alerts send mail.
globals().update(_env.email_url)
EMAIL_TIMEOUT = _env.alert_send_seconds
DEFAULT_FROM_EMAIL = _env.email_from

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS: dict[str, dict[str, object]] = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
if _env.redis_url:
    CHANNEL_LAYERS["default"] = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [{"address": _env.redis_url, **redis_options()}], "prefix": "gumcp"},
    }

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
# The admin's files are served by the process itself, straight from the installed packages: no collectstatic step.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    # Only the one in use: Django imports each, in every command.
    "formatters": {
        "lines": {"()": "gateway.host.json_log.JsonLines"}
        if _env.log_format == "json"
        else {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
    "root": {"handlers": ["stderr"], "level": _env.log_level},
    "loggers": {
        # Its level is fixed: at DEBUG the SDK prints message bodies, at INFO whole session ids.
        "mcp": {"level": "WARNING"},
        # At DEBUG it prints what queries ask for: operators' sessions, users.
        "django.db.backends": {"level": "INFO"},
        # At INFO it prints the URL of each request. For the doctor, that has a key in it.
        "httpx2": {"level": "WARNING"},
        "watchfiles": {"level": "WARNING"},
        # Each failed attempt to export traces, and each span that is dropped then. `gateway.tracing` says so once.
        "opentelemetry.exporter": {"level": "CRITICAL"},
        "opentelemetry.sdk._shared_internal": {"level": "CRITICAL"},
        # It prints a traceback each second while Redis is away. `gateway.host.control` says so once.
        "channels_redis": {"level": "CRITICAL"},
    },
}
