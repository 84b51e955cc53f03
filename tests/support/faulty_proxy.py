"""A reverse proxy that breaks one thing, as proxies in the field do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.support.deadlines import WAIT_SECONDS

FAULTS: Final = (
    "none",
    "buffering",
    "redirect on POST",
    "text 404",
    "foreign name",
    "under a path",
    "no session id",
    "no authorization",
    "compression",
    "no comments",
    "another site",
)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request, and closes the connection."""

    server: _Server

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._pass_on
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _pass_on(self) -> None:
        fault = self.server.fault
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if fault == "redirect on POST" and self.command == "POST":
            self._answer(301, "text/html", b"moved", {"Location": f"{self.path}/"})
            return
        if fault == "another site":
            self._answer(200, "text/html", b"<h1>It works!</h1>")
            return
        path = self.path.removeprefix("/below") if fault == "under a path" else self.path
        if fault == "foreign name":
            self.headers.replace_header("Host", "upstream.internal")
        if fault == "no authorization":
            del self.headers["Authorization"]
        del self.headers["Connection"]
        self.headers["X-Forwarded-For"] = "192.0.2.1"
        connection = HTTPConnection("127.0.0.1", self.server.upstream, timeout=WAIT_SECONDS)
        with suppress(OSError):
            connection.request(self.command, path, body, dict(self.headers.items()))
            self._return(connection.getresponse())
        connection.close()

    def _return(self, response: HTTPResponse) -> None:
        fault = self.server.fault
        if fault == "text 404" and response.status == 404:
            self._answer(404, "text/html", b"<h1>404 Not Found</h1>")
            return
        is_stream = response.headers.get_content_type() == "text/event-stream"
        if is_stream and fault == "buffering":
            response.read()
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if name.lower() in {"transfer-encoding", "connection"}:
                continue
            if not (fault == "no session id" and name.lower() == "mcp-session-id"):
                self.send_header(name, value)
        if is_stream and fault == "compression":
            self.send_header("Content-Encoding", "br")
        self.end_headers()
        while data := response.read1(65536):
            if not (fault == "no comments" and data.startswith(b":")):
                self.wfile.write(data)
                self.wfile.flush()

    def _answer(self, status: int, media_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: int, fault: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fault = fault


@contextmanager
def faulty_proxy(upstream: int, fault: str) -> Iterator[str]:
    """The address of a proxy with one of `FAULTS` in front of a port of this machine."""
    assert fault in FAULTS
    with _Server(upstream, fault) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(WAIT_SECONDS)
