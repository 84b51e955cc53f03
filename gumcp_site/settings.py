"""Django settings of a guMCP host.

The environment is read here and nowhere else; `.env.example` lists every variable with its default.
`gateway.conf` gives the `GUMCP_*` values their types for the rest of the code.
"""

import contextlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
if (BASE_DIR / ".env").is_file():
    environ.Env.read_env(str(BASE_DIR / ".env"))


def _path_list(name: str, default: str) -> list[Path]:
    """A list of folders like PATH; relative ones start at the project's root."""
    return [BASE_DIR / part for part in env.str(name, default).split(os.pathsep) if part]


def _rate(name: str, default: str) -> str:
    """A limit such as 600/minute; empty or 0 is none, which is empty."""
    text = env.str(name, default).strip()
    return "" if text == "0" else text


def _count(name: str, default: int) -> int:
    """A limit that is a number; empty or 0 is none, which is 0."""
    return env.int(name, default) if env.str(name, str(default)).strip() else 0


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

GUMCP_PUBLIC_URL = env.str("GUMCP_PUBLIC_URL", "")
"""The address clients use, such as https://mcp.example.com. Sets allowed hosts, origins and the HTTPS rules at once."""

_public = urlsplit(GUMCP_PUBLIC_URL)
if GUMCP_PUBLIC_URL and (_public.scheme not in ("http", "https") or not _public.hostname):
    raise ImproperlyConfigured("GUMCP_PUBLIC_URL must look like https://mcp.example.com.")
_public_origin = f"{_public.scheme}://{_public.netloc}" if GUMCP_PUBLIC_URL else ""
_is_https = _public.scheme == "https"

DEBUG = env.bool("GUMCP_DEBUG", False)
GUMCP_DATA_DIR = BASE_DIR / env.str("GUMCP_DATA_DIR", "var")
# The database holds password hashes and who used what: it is its owner's alone.
GUMCP_DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
SECRET_KEY = env.str("GUMCP_SECRET_KEY", "") or _kept_secret_key(GUMCP_DATA_DIR / "secret_key")

ALLOWED_HOSTS: list[str] = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    *([_public.hostname] if _public.hostname else []),
    *env.list("GUMCP_ALLOWED_HOSTS", default=[]),
]
CSRF_TRUSTED_ORIGINS = [_public_origin] if _public_origin else []

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _is_https
if _is_https:
    # Browsers take a cookie of such a name over HTTPS only, for this host alone.
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
SESSION_COOKIE_AGE = 12 * 3600
CSRF_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_SSL_REDIRECT = _is_https
# Probes ask the process itself, over plain HTTP.
SECURE_REDIRECT_EXEMPT = [r"^$", r"^health_check$"]
SECURE_HSTS_SECONDS = 31_536_000 if _is_https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _is_https
X_FRAME_OPTIONS = "DENY"

# -- Django ----------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "gateway",
    "gateway.access",
    "gateway.records",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "django_prometheus",
]

MIDDLEWARE = [
    "gateway.endpoints.error_reports.RedactErrorPages",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
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
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

DEFAULT_EXCEPTION_REPORTER = "gateway.endpoints.error_reports.RedactingReporter"
DEFAULT_EXCEPTION_REPORTER_FILTER = "gateway.endpoints.error_reports.RedactingFilter"

ROOT_URLCONF = "gumcp_site.urls"
ASGI_APPLICATION = "gumcp_site.asgi.application"
APPEND_SLASH = False

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
    "default": env.db_url_config(env.str("DATABASE_URL", "") or f"sqlite:///{GUMCP_DATA_DIR / 'gumcp.sqlite3'}")
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # WAL: the recorder's writes do not hold up the admin's reads. IMMEDIATE: a writer waits for the lock
        # (timeout, seconds) instead of failing when it upgrades from a read.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        "transaction_mode": "IMMEDIATE",
        "timeout": 5,
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

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
STATIC_ROOT = GUMCP_DATA_DIR / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
# The admin's files are served by the process itself, straight from the installed packages: no collectstatic step.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("GUMCP_LOG_LEVEL", "INFO")},
    "loggers": {
        # Its level is fixed: at DEBUG the SDK prints message bodies, at INFO whole session ids.
        "mcp": {"level": "WARNING"},
        # At DEBUG it prints what queries ask for: operators' sessions, users.
        "django.db.backends": {"level": "INFO"},
        "watchfiles": {"level": "WARNING"},
    },
}

# -- Who may call ----------------------------------------------------------------------------------------------------

# A public host checks keys unless it is told not to.
GUMCP_AUTH = env.str("GUMCP_AUTH", "keys" if _is_https else "open")
if GUMCP_AUTH not in ("open", "keys"):
    raise ImproperlyConfigured("GUMCP_AUTH is open (any session key is accepted) or keys (every request needs one).")
GUMCP_ALLOW_NETWORK_WITHOUT_KEYS = env.bool("GUMCP_ALLOW_NETWORK_WITHOUT_KEYS", False)
GUMCP_HIDE_KEYS_FROM_SERVERS = env.bool("GUMCP_HIDE_KEYS_FROM_SERVERS", False)
# TLS ends in a proxy, on this machine unless told otherwise.
GUMCP_TRUSTED_PROXIES = env.list("GUMCP_TRUSTED_PROXIES", default=["127.0.0.1", "::1"] if _is_https else [])

GUMCP_LIMITS_STORAGE_URL = env.str("GUMCP_LIMITS_STORAGE_URL", "") or "memory://"
GUMCP_LIMIT_REQUESTS_PER_KEY = _rate("GUMCP_LIMIT_REQUESTS_PER_KEY", "1200/minute")
GUMCP_LIMIT_REQUESTS_PER_ADDRESS = _rate("GUMCP_LIMIT_REQUESTS_PER_ADDRESS", "6000/minute")
GUMCP_LIMIT_CALLS_PER_KEY = _rate("GUMCP_LIMIT_CALLS_PER_KEY", "600/minute")
GUMCP_LIMIT_FAILED_KEYS = _rate("GUMCP_LIMIT_FAILED_KEYS", "30/minute")
GUMCP_LIMIT_FAILED_LOGINS = _rate("GUMCP_LIMIT_FAILED_LOGINS", "10 per 5 minutes")
GUMCP_MAX_SESSIONS_PER_KEY = _count("GUMCP_MAX_SESSIONS_PER_KEY", 100)
GUMCP_MAX_SESSIONS_PER_ADDRESS = _count("GUMCP_MAX_SESSIONS_PER_ADDRESS", 1000)

# -- The host --------------------------------------------------------------------------------------------------------

GUMCP_SERVER_DIRS = _path_list("GUMCP_SERVER_DIRS", "servers")
GUMCP_HOST = env.str("GUMCP_HOST", "127.0.0.1")
GUMCP_PORT = env.int("GUMCP_PORT", 8000)
GUMCP_METRICS_HOST = env.str("GUMCP_METRICS_HOST", "127.0.0.1")
GUMCP_METRICS_PORT = env.int("GUMCP_METRICS_PORT", 9091)

GUMCP_API_KEY = env.str("GUMCP_API_KEY", "")

GUMCP_ALLOWED_ORIGINS = [*CSRF_TRUSTED_ORIGINS, *env.list("GUMCP_ALLOWED_ORIGINS", default=[])]

GUMCP_CALL_TIMEOUT_SECONDS = env.float("GUMCP_CALL_TIMEOUT_SECONDS", 60)
GUMCP_MAX_CONCURRENT_CALLS = env.int("GUMCP_MAX_CONCURRENT_CALLS", 0)
GUMCP_MAX_CONCURRENT_CALLS_PER_USER = env.int("GUMCP_MAX_CONCURRENT_CALLS_PER_USER", 0)
GUMCP_MAX_THREADS = env.int("GUMCP_MAX_THREADS", 32)
GUMCP_LOAD_TIMEOUT_SECONDS = env.float("GUMCP_LOAD_TIMEOUT_SECONDS", 60)
GUMCP_FACTORY_TIMEOUT_SECONDS = env.float("GUMCP_FACTORY_TIMEOUT_SECONDS", 30)
GUMCP_INSTANCE_IDLE_SECONDS = env.float("GUMCP_INSTANCE_IDLE_SECONDS", 1800)
GUMCP_MAX_INSTANCES = env.int("GUMCP_MAX_INSTANCES", 10_000)
GUMCP_SESSION_IDLE_SECONDS = env.float("GUMCP_SESSION_IDLE_SECONDS", 1800)
GUMCP_MAX_SESSIONS = env.int("GUMCP_MAX_SESSIONS", 10_000)
GUMCP_MAX_SESSION_BACKLOG = env.int("GUMCP_MAX_SESSION_BACKLOG", 1000)
GUMCP_MAX_KEPT_EVENTS = env.int("GUMCP_MAX_KEPT_EVENTS", 256)
GUMCP_MAX_KEPT_EVENT_BYTES = env.int("GUMCP_MAX_KEPT_EVENT_BYTES", 256 * 1024)
GUMCP_MAX_BODY_BYTES = env.int("GUMCP_MAX_BODY_BYTES", 4 * 1024 * 1024)
GUMCP_MAX_UNFINISHED_BODIES_BYTES = env.int("GUMCP_MAX_UNFINISHED_BODIES_BYTES", 256 * 1024 * 1024)
GUMCP_PING_SECONDS = env.float("GUMCP_PING_SECONDS", 15)
GUMCP_STREAM_BUFFER_BYTES = env.int("GUMCP_STREAM_BUFFER_BYTES", 1024 * 1024)
GUMCP_SLOW_READER_SECONDS = env.float("GUMCP_SLOW_READER_SECONDS", 30)
GUMCP_MAX_CONNECTIONS = env.int("GUMCP_MAX_CONNECTIONS", 20_000)
GUMCP_MAX_CONNECTIONS_PER_ADDRESS = env.int("GUMCP_MAX_CONNECTIONS_PER_ADDRESS", 10_000)
GUMCP_SHUTDOWN_GRACE_SECONDS = env.float("GUMCP_SHUTDOWN_GRACE_SECONDS", 20)
GUMCP_SESSION_RETENTION_DAYS = env.float("GUMCP_SESSION_RETENTION_DAYS", 7)
