"""Alerts of a real host: set in its admin, sent to a real receiver and a real mail server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.browser.scene import make_operator
from tests.support.admin_site import Admin
from tests.support.alert_receivers import MailServer, WebhookReceiver, mail_server, webhook_receiver
from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, manage, until
from tests.support.server_folders import SOUND_SERVER, write_main

PAGES = "/admin/alerts/alertdestination/"
EVENTS = ["server_failed", "server_blocked", "host_degraded", "many_refusals", "key_expires"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[WebhookReceiver]:
    with webhook_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def mails() -> Iterator[MailServer]:
    with mail_server() as running:
        yield running


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server that does not load. Its error has a secret in it."""
    folder = tmp_path_factory.mktemp("servers")
    write_main(folder, "broken", "raise RuntimeError('canary-of-the-module')\n")
    return folder


@pytest.fixture(scope="module")
def host(start_host: StartHost, servers: Path, mails: MailServer) -> Iterator[HostProcess]:
    options = {
        "GUMCP_AUTH": "keys",
        "GUMCP_ALERT_AFTER_SECONDS": "0",
        "GUMCP_ALERT_CALM_SECONDS": "0",
        "GUMCP_ALERT_REFUSALS_PER_MINUTE": "20",
        "GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES": "true",
        "GUMCP_EMAIL_URL": f"smtp://127.0.0.1:{mails.port}",
    }
    with start_host(server_dirs=f"{PLAIN_SERVERS}:{servers}", **options) as host:
        make_operator(host, "root")
        yield host


def said(receiver: WebhookReceiver) -> list[tuple[str, str, str]]:
    """State, event and subject of everything that the webhook has got."""
    items = [item for post in receiver.posts for item in json.loads(post.body)["data"]["alerts"]]
    return [(item["state"], item["event"], item["subject"]) for item in items]


def test_operator_is_told_what_begins_and_what_ends_by_webhook_and_by_mail(
    host: HostProcess, servers: Path, receiver: WebhookReceiver, mails: MailServer
) -> None:
    admin = Admin(host, "root")
    webhook = {"name": "pager", "kind": "webhook", "url": receiver.url, "events": EVENTS, "is_enabled": "on"}
    assert re.search(r"whsec_[A-Za-z0-9+/]{43}=", admin.post(f"{PAGES}add/", webhook))
    mail = {"name": "ops", "kind": "email", "addresses": "ops@example.com", "events": ["server_failed"]}
    admin.post(f"{PAGES}add/", {**mail, "is_enabled": "on"})

    # What was wrong before there was a destination is told too.
    until(lambda: ("begun", "server_failed", "broken") in said(receiver), within(5))
    until(lambda: any("broken cannot be loaded" in str(mail["subject"]) for mail in mails.mails), within(5))

    # A test goes the same way.
    admin.post(f"{PAGES}1/test/", {})
    until(lambda: ("test", "test", "pager") in said(receiver), within(5))

    # Many requests are refused.
    for _ in range(20):
        host.request("POST", "/workshop/nobody", b"{}")
    until(lambda: ("begun", "many_refusals", "host") in said(receiver), within(5))

    # The server is mended.
    write_main(servers, "broken", SOUND_SERVER)
    mended = manage("reload", data_dir=host.data_dir)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    until(lambda: ("ended", "server_failed", "broken") in said(receiver), within(5))
    until(lambda: any("no longer fails to load" in str(mail["subject"]) for mail in mails.mails), within(5))
    until(lambda: "Works" in admin.get(PAGES), within(5))

    # Each is told once, and nothing of it is anybody's secret.
    told = said(receiver)
    assert len(told) == len(set(told))
    everything = b"".join(post.body for post in receiver.posts).decode() + "".join(map(str, mails.mails))
    for secret in ("canary-of-the-module", "token-of-the-receiver"):
        assert secret not in everything
    assert "token-of-the-receiver" not in host.log()
    sent = partial(host.metric, "gumcp_alert_deliveries_total", outcome="sent")
    until(lambda: (sent(kind="webhook"), sent(kind="email")) == (len(receiver.posts), len(mails.mails)), within(5))
