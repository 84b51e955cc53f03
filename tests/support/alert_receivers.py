"""What alerts are sent to: a webhook's receiver and a mail server, on loopback, in threads of the test."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.processes import until


@dataclass(frozen=True)
class Post:
    """One request of a webhook."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookReceiver:
    """Keeps what it gets, and answers with `status`."""

    port: int = 0
    posts: list[Post] = field(default_factory=list)
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/in/token-of-the-receiver"

    def wait(self, count: int, seconds: float = 15) -> list[Post]:
        """The posts, once there are so many."""
        until(lambda: len(self.posts) >= count, seconds)
        return list(self.posts)


@contextmanager
def webhook_receiver() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    receiver.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.posts.append(Post(self.path, headers, body))
            receiver.may_answer.wait(15)
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_port
        with _serving(server):
            yield receiver
        receiver.may_answer.set()


@dataclass
class MailServer:
    """Keeps the mails that it gets. `refusal` is what it answers to a mail instead of taking it."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    refusal: str = ""

    def wait(self, count: int, seconds: float = 15) -> list[EmailMessage]:
        """The mails, once there are so many."""
        until(lambda: len(self.mails) >= count, seconds)
        return list(self.mails)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """An SMTP server (RFC 5321) without TLS and without a login."""
    kept = MailServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 mail.test ESMTP")
            while line := self.rfile.readline():
                word = line.split(None, 1)[0].upper() if line.strip() else b""
                if word == b"QUIT":
                    self.say("221 Bye")
                    return
                if word == b"DATA":
                    self.take()
                elif word == b"RCPT":
                    kept.recipients.append(line.decode().partition("<")[2].partition(">")[0])
                    self.say(kept.refusal or "250 OK")
                else:
                    self.say("250 OK")

        def take(self) -> None:
            self.say("354 Go on")
            lines = []
            while (line := self.rfile.readline()) not in (b".\r\n", b""):
                lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
            mail = message_from_bytes(b"".join(lines), policy=policy.default)
            assert isinstance(mail, EmailMessage)
            kept.mails.append(mail)
            self.say("250 Taken")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        kept.port = server.server_address[1]
        with _serving(server):
            yield kept


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
