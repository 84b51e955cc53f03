"""Debug pages and error mails: the keys that stand in what they report are taken out."""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core import mail
from django.http import HttpRequest
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from django.utils.log import AdminEmailHandler
from django.views.debug import get_exception_reporter_class, technical_500_response

from gateway.access.keys import make_key
from gateway.endpoints.error_reports import RedactingReporter

CANARY = "canary-5b7e"
KEY = make_key()


def fails(request: HttpRequest) -> Any:
    innocent_name = f"/workshop/ada:{CANARY}"
    raise RuntimeError(f"failed for {innocent_name} with {KEY.text}")


urlpatterns = [path("fails/<path:rest>", lambda request, rest: fails(request))]


@pytest.fixture
def secret_request() -> HttpRequest:
    return RequestFactory().get(
        f"/workshop/ada:{CANARY}?key={CANARY}&session_id={CANARY}",
        headers={
            "Authorization": f"Bearer {KEY.text}",
            "Referer": f"https://mcp.example.com/workshop/ada:{CANARY}",
            "X-Anything": f"Bearer {CANARY}-token",
            "Cookie": f"sessionid={CANARY}",
            "Mcp-Session-Id": CANARY,
        },
    )


def report(request: HttpRequest) -> Iterator[str]:
    try:
        fails(request)
    except RuntimeError:
        error = sys.exc_info()
    for is_email in (False, True):
        reporter = get_exception_reporter_class(request)(request, *error, is_email=is_email)
        assert isinstance(reporter, RedactingReporter)
        yield reporter.get_traceback_html()
        yield reporter.get_traceback_text()
    yield technical_500_response(request, *error).content.decode()


@override_settings(DEBUG=True, ALLOWED_HOSTS=["*"])
def test_debug_page_and_mail_say_no_secret_and_what_is_needed(secret_request: HttpRequest) -> None:
    for text in report(secret_request):
        assert CANARY not in text
        assert KEY.text not in text
        assert settings.SECRET_KEY not in text
        assert KEY.public in text
        assert "RuntimeError" in text
        assert "fails" in text


@override_settings(DEBUG=False, ADMINS=[("Operator", "operator@example.com")], ALLOWED_HOSTS=["*"])
def test_error_mail_is_redacted(secret_request: HttpRequest) -> None:
    try:
        fails(secret_request)
    except RuntimeError:
        record = logging.LogRecord(
            "django.request", logging.ERROR, __file__, 1, "Internal Server Error", (), sys.exc_info()
        )
    record.request = secret_request
    AdminEmailHandler(include_html=True).emit(record)
    [message] = mail.outbox
    text = message.body + str(message.alternatives)
    assert CANARY not in text
    assert KEY.text not in text
    assert "RuntimeError" in text


@override_settings(DEBUG=True, ROOT_URLCONF="tests.endpoints.test_error_reports", ALLOWED_HOSTS=["*"])
@pytest.mark.parametrize(
    "url", [f"/workshop/ada:{CANARY}", f"/metrics/ada:{CANARY}?key={CANARY}", f"/fails/ada:{CANARY}"]
)
def test_pages_of_a_debugging_host_do_not_repeat_the_key_they_were_asked_for(url: str) -> None:
    client = Client(raise_request_exception=False)
    answer = client.get(url.replace("CANARY", CANARY), headers={"Referer": f"http://testserver/workshop/ada:{CANARY}"})
    assert answer.status_code in (404, 500)
    assert CANARY.encode() not in answer.content
    assert KEY.text.encode() not in answer.content
    if "Content-Length" in answer.headers:
        assert int(answer.headers["Content-Length"]) == len(answer.content)
