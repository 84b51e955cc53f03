"""Messages on their way: a real receiver of webhooks and a real mail server on loopback, and what may go wrong."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from django.test import override_settings

from gateway.alerts.delivery import DeliveryError, Outgoing, deliver
from gateway.alerts.sender import Sender
from gateway.alerts.signing import shown_secret
from tests.support.alert_receivers import MailServer, WebhookReceiver, mail_server, webhook_receiver
from tests.support.processes import ROOT, until

ITEM: Any = {
    "id": 7,
    "event": "server_failed",
    "state": "begun",
    "subject": "notes",
    "text": "The server notes cannot be loaded.",
    "began_at": "2026-01-31T12:00:00+00:00",
    "ended_at": None,
}


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES = True
    settings.GUMCP_ALERT_SEND_SECONDS = 5.0


@pytest.fixture(scope="module")
def running_receiver() -> Iterator[WebhookReceiver]:
    with webhook_receiver() as running:
        yield running


@pytest.fixture
def receiver(running_receiver: WebhookReceiver) -> WebhookReceiver:
    running_receiver.posts.clear()
    running_receiver.status, running_receiver.headers = 204, {}
    return running_receiver


@pytest.fixture
def mails(settings: Any) -> Iterator[MailServer]:
    with mail_server() as server:
        settings.GUMCP_EMAIL_URL = {"EMAIL_HOST": "127.0.0.1"}
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.EMAIL_TIMEOUT, settings.DEFAULT_FROM_EMAIL = 5, "guMCP <gumcp@example.com>"
        yield server


def message(url: str = "", **fields: Any) -> Outgoing:
    values: dict[str, Any] = {
        "message_id": UUID(int=1),
        "destination_id": 1,
        "kind": "webhook",
        "url": url,
        "addresses": [],
        "salt": "salt",
        "items": [ITEM],
        "created_at": datetime.now(UTC),
        **fields,
    }
    return Outgoing(**values)


def documented_check() -> Callable[..., bool]:
    """The receiver's check, as the documentation has it."""
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def is_genuine" in block]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    check = names["is_genuine"]
    assert callable(check)
    return check  # type: ignore[no-any-return]


def test_receiver_that_checks_as_documented_takes_the_message_and_nothing_else(receiver: WebhookReceiver) -> None:
    deliver(message(receiver.url))
    (post,) = receiver.posts
    is_genuine, secret = documented_check(), shown_secret("salt")
    assert is_genuine(secret, post.headers, post.body)
    content = json.loads(post.body)
    assert content["type"] == "gumcp.alerts"
    assert content["text"] == ITEM["text"]
    assert content["data"] == {"host": "http://127.0.0.1:8000", "alerts": [ITEM]}
    assert not is_genuine(secret, post.headers, post.body + b" ")
    assert not is_genuine(shown_secret("other"), post.headers, post.body)
    assert not is_genuine(secret, {**post.headers, "webhook-id": "x"}, post.body)
    assert not is_genuine(secret, {**post.headers, "webhook-timestamp": "1000000000"}, post.body)
    assert not is_genuine(secret, {}, post.body)


def test_secret_follows_the_secret_key_and_the_salt() -> None:
    secret = shown_secret("salt")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    with override_settings(SECRET_KEY="another"):
        assert shown_secret("salt") != secret


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (500, {}, "The receiver answered with status 500."),
        (404, {}, "The receiver answered with status 404."),
        (302, {"Location": "http://127.0.0.1:9/elsewhere"}, "a redirect (status 302), which is not followed"),
    ],
)
def test_answer_that_is_not_a_success_is_a_failure(
    status: int, headers: dict[str, str], sentence: str, receiver: WebhookReceiver
) -> None:
    receiver.status, receiver.headers = status, headers
    with pytest.raises(DeliveryError, match=re.escape(sentence)):
        deliver(message(receiver.url))
    assert len(receiver.posts) == 1


def test_receiver_that_does_not_answer_is_left_after_the_time_of_an_attempt(
    receiver: WebhookReceiver, settings: Any
) -> None:
    settings.GUMCP_ALERT_SEND_SECONDS = 0.3
    receiver.may_answer.clear()
    with pytest.raises(DeliveryError, match=re.escape("There was no answer within 0.3 s.")):
        deliver(message(receiver.url))
    receiver.may_answer.set()


def test_receiver_that_is_not_there_is_a_failure_that_does_not_show_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeliveryError) as raised:
        deliver(message(f"http://127.0.0.1:{port}/token"))
    assert str(raised.value) == "The receiver refused the connection."


def test_name_that_leads_to_a_private_address_is_refused_at_the_connection(
    receiver: WebhookReceiver, settings: Any
) -> None:
    settings.GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES = False
    with pytest.raises(DeliveryError, match="leads to an address that is refused"):
        deliver(message(f"http://localhost:{receiver.port}/in"))
    assert receiver.posts == []


def test_mail_says_what_is_wrong_and_goes_to_all_addresses(mails: MailServer) -> None:
    over = {**ITEM, "state": "ended", "text": "Over: it is well.", "ended_at": "2026-01-31T12:05:00+00:00"}
    deliver(message(kind="email", addresses=["a@example.com", "b@example.com"], items=[ITEM, over]))
    (mail,) = mails.mails
    assert mail["subject"] == "[guMCP] The server notes cannot be loaded. (and 1 more)"
    assert mail["from"] == "guMCP <gumcp@example.com>"
    assert mails.recipients == ["a@example.com", "b@example.com"]
    text = mail.get_content().replace("\r\n", "\n")
    assert "The server notes cannot be loaded.\n  since 2026-01-31T12:00:00+00:00" in text
    assert "until 2026-01-31T12:05:00+00:00" in text
    assert "http://127.0.0.1:8000/admin/" in text


def test_mail_server_that_refuses_is_a_failure(mails: MailServer, settings: Any) -> None:
    mails.refusal = "550 Nobody of this name: secret words of the server"
    with pytest.raises(DeliveryError, match=r"^The mail server refused the addresses\.$"):
        deliver(message(kind="email", addresses=["a@example.com"]))
    settings.GUMCP_EMAIL_URL = {}
    with pytest.raises(DeliveryError, match="GUMCP_EMAIL_URL is not set"):
        deliver(message(kind="email", addresses=["a@example.com"]))


def test_attempt_that_does_not_return_is_given_up_and_its_result_is_not_heard(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_return = threading.Event()
    results: list[str] = []
    sender = Sender(lambda _: may_return.wait(15) and None)
    settings.GUMCP_ALERT_SEND_SECONDS = 0.1
    monkeypatch.setattr("gateway.alerts.sender.GIVE_UP_SECONDS", 0.0)
    sender.start(message(), lambda _, error: results.append(error))
    assert sender.busy == {1}

    def gives_up() -> bool:
        sender.keep_up()
        return bool(results)

    until(gives_up)
    assert results == ["It took longer than 0.1 s."]
    assert sender.busy == set()
    room = sender.room
    may_return.set()
    until(lambda: sender.room > room)
    assert len(results) == 1
