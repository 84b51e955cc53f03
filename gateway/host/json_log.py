"""Log lines and access lines as JSON objects, for `GUMCP_LOG_FORMAT=json`.

Secrets are taken out before: of log records by `access.log_redaction`, of access lines by our Daphne, which passes on
redacted paths only.
"""

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from gateway.access.identity import current_identity
from gateway.http.current_request import current_request
from gateway.http.request_ids import request_id
from gateway.instances.call_log import current_conversation
from gateway.printable import printable
from gateway.tracing.current import current_trace_id

MAX_NAME_LENGTH: Final = 100


class JsonLines(logging.Formatter):
    """Writes each record as an object with time, level, logger, message, and `error`: the traceback if there is one.

    A record that belongs to a request has further fields: `request` (the proxy's id of it), `server`, `user`,
    `session` (the id of its row in the admin), `transport`, `era` (the protocol version) and `trace` (the id of its
    OpenTelemetry trace). What a caller of `logging` gives as `extra` is left out: Django puts whole requests there.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            line["error"] = record.exc_text
        elif record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        _add_caller(line)
        return json.dumps(line)


class JsonAccessLog:
    """Writes an object for each request that our Daphne has answered. Daphne calls it an action logger."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, protocol: str, action: str, details: dict[str, Any]) -> None:
        """Write the line of one request. Other actions are left out."""
        if (protocol, action) != ("http", "complete"):
            return
        line = {
            "time": _time(None),
            "level": "INFO",
            "logger": "access",
            "client": details["client"],
            "method": details["method"],
            "path": details["path"],
            "status": details["status"],
            "bytes": details["size"],
            "seconds": round(details["time_taken"], 6),
        }
        _add_request_id(line, details.get("headers", ()))
        self._stream.write(json.dumps(line) + "\n")


def _add_caller(line: dict[str, Any]) -> None:
    request, identity, conversation = current_request.get(), current_identity.get(), current_conversation.get()()
    if request is not None:
        line["server"] = printable(request.server_name[:MAX_NAME_LENGTH])
        _add_request_id(line, request.scope["headers"])
    if identity is not None:
        line["user"] = printable(identity.user_id)
    if conversation.transport:
        line["transport"] = conversation.transport
        line["era"] = printable(conversation.protocol_version)
    if conversation.session_id is not None:
        line["session"] = str(conversation.session_id)
    if trace_id := current_trace_id(None if request is None else request.scope):
        line["trace"] = trace_id


def _time(seconds: float | None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds")


def _add_request_id(line: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    if found := request_id(headers):
        line["request"] = found
