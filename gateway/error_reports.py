"""Django's error pages, error mails and debug pages, passed through the redactor.

Django hides values whose names look secret. In this project secrets also stand in paths, in Referer, and in other
values of innocent names: so what is reported is redacted by what it says, too.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from gateway.apps import GatewayConfig
from gateway.redaction import PathRedactor

_HIDDEN_NAMES: Final = re.compile(
    r"API|AUTH|TOKEN|KEY|SECRET|PASS|SIGNATURE|HTTP_COOKIE|SESSION|DATABASE|STORAGE_URL|REDIS|DIGEST|IDENTITY|"
    r"CREDENTIAL",
    re.IGNORECASE,
)


def current_redactor() -> PathRedactor:
    """The redactor of the running host, or one like it in a process that serves nothing."""
    config = GatewayConfig.current()
    return config.host.redactor if config.host is not None else PathRedactor(config.registry.names)


class RedactingFilter(SafeExceptionReporterFilter):
    """Hides more names than Django does, and what the redactor finds in any text."""

    hidden_settings = _HIDDEN_NAMES

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """The value as it may be shown."""
        cleansed = super().cleanse_setting(key, value)
        return current_redactor()(cleansed) if isinstance(cleansed, str) else cleansed


class RedactingReporter(ExceptionReporter):
    """A report whose whole text has gone through the redactor: messages, source lines, variables, the request."""

    def get_traceback_html(self) -> SafeString:
        """The debug page, and the HTML part of an error mail."""
        return _safe(super().get_traceback_html())

    def get_traceback_text(self) -> SafeString:
        """An error mail, and the debug page of clients that take no HTML."""
        return _safe(super().get_traceback_text())


def _safe(text: str) -> SafeString:
    # What the redactor puts in has no markup.
    return SafeString(current_redactor()(text))


class RedactErrorPages:
    """Middleware: an error page says no secret of the request that it answers. Outermost, so that it sees them all."""

    async_capable = True
    sync_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request."""
        if self._is_async:
            return self._answer(request)
        response: HttpResponseBase = self._get_response(request)
        return _redacted(request, response)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        return _redacted(request, await self._get_response(request))


def _redacted(request: HttpRequest, response: Any) -> HttpResponseBase:
    is_text = response.headers.get("Content-Type", "").startswith(("text/", "application/json"))
    if response.status_code >= 400 and not response.streaming and is_text:
        text = response.content.decode(response.charset, "replace")
        # Django's pages repeat the path they were asked for, whatever stands in it.
        for path in {request.path, request.path_info, request.get_full_path()}:
            shown = current_redactor().path(path)
            if shown != path:
                text = text.replace(path, shown)
        response.content = current_redactor()(text).encode(response.charset)
        if response.has_header("Content-Length"):
            response.headers["Content-Length"] = str(len(response.content))
    return response  # type: ignore[no-any-return]
