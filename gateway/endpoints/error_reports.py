"""Django's error pages, error mails and debug pages, passed through the redactor.

Django hides values whose names look secret. In this project secrets are also in paths, in the Referer header, and in
values with harmless names. So the text of a report is redacted as well.
"""

import html
import re
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from gateway.access.redaction import SECRET_NAMES, PathRedactor, redact
from gateway.apps import GatewayConfig

_HIDDEN_NAMES: Final = re.compile(
    r"API|AUTH|TOKEN|KEY|SECRET|PASS|SIGNATURE|HTTP_COOKIE|SESSION|DATABASE|STORAGE_URL|REDIS|DIGEST|IDENTITY|"
    r"CREDENTIAL|CHANNEL_LAYERS",
    re.IGNORECASE,
)


def current_redactor() -> PathRedactor:
    """The redactor of the running host. In a process without a host, a new one that knows the same servers."""
    config = GatewayConfig.current()
    return config.host.redactor if config.host is not None else PathRedactor(config.registry.names)


class RedactingFilter(SafeExceptionReporterFilter):
    """Hides the values of more names than Django does, and passes all other values through the redactor."""

    hidden_settings = _HIDDEN_NAMES

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """The value as it may be shown."""
        cleansed = super().cleanse_setting(key, value)
        return current_redactor()(cleansed) if isinstance(cleansed, str) else cleansed


class RedactingReporter(ExceptionReporter):
    """An error report. Its whole text goes through the redactor: messages, source lines, variables, the request."""

    def get_traceback_html(self) -> SafeString:
        """The debug page, and the HTML part of an error mail."""
        return self._safe(super().get_traceback_html())

    def get_traceback_text(self) -> SafeString:
        """The text of an error mail, and the debug page for clients that do not accept HTML."""
        return self._safe(super().get_traceback_text())

    def _safe(self, text: str) -> SafeString:
        # The redactor adds no markup.
        return SafeString(_without_secrets(text, self.request))


class RedactErrorPages(MiddlewareMixin):
    """Middleware that removes the secrets of a request from its error page. It is the outermost, to see every page."""

    def process_response(self, request: HttpRequest, response: Any) -> HttpResponseBase:
        """Redact the text of `response` if it reports an error."""
        is_text = response.headers.get("Content-Type", "").startswith(("text/", "application/json"))
        if response.status_code >= 400 and not response.streaming and is_text:
            text = response.content.decode(response.charset, "replace")
            response.content = _without_secrets(text, request).encode(response.charset)
            if response.has_header("Content-Length"):
                response.headers["Content-Length"] = str(len(response.content))
        return response  # type: ignore[no-any-return]


def _without_secrets(text: str, request: HttpRequest | None) -> str:
    """`text` without what the redactor finds, and without the secrets in `request`, in every form that pages show."""
    text = current_redactor()(text)
    for secret in sorted(_brought_by(request) if request is not None else (), key=len, reverse=True):
        for shown in {secret, html.escape(secret), repr(secret)[1:-1], quote(secret)}:
            text = redact(text, shown)
    return text


def _brought_by(request: HttpRequest) -> set[str]:
    """The parts of a request that may be secret: credentials, cookies, and parts of its URLs that look like keys."""
    found = {value for cookie in request.COOKIES.values() for value in (cookie, unquote(cookie))}
    found |= {request.META.get(name, "") for name in ("HTTP_MCP_SESSION_ID", "HTTP_LAST_EVENT_ID")}
    found.add(request.META.get("HTTP_AUTHORIZATION", "").rpartition(" ")[2])
    for url in (request.get_full_path(), request.path_info, request.META.get("HTTP_REFERER", "")):
        path, _, query = url.partition("?")
        # The host of a Referer may have a port.
        for segment in re.split(r"/+", path.partition("://")[2].partition("/")[2] if "://" in path else path):
            for written in (segment, unquote(segment)):
                if ":" in written:
                    found |= {written, written.partition(":")[2]}
        found |= {value for name, value in parse_qsl(query) if SECRET_NAMES.fullmatch(name)}
    return found
