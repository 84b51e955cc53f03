"""Log lines and access lines as JSON."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any
from uuid import UUID

import pytest

from gateway.access.identity import Identity, current_identity
from gateway.host.json_log import JsonAccessLog, JsonLines
from gateway.http.current_request import CurrentRequest, current_request
from gateway.instances.call_log import Conversation, current_conversation

CONVERSATION = Conversation("sse", "2025-11-25", "client", "1", UUID(int=7))
REQUEST_ID = "5f3c9e0a1b2c4d5e8f90a1b2c3d4e5f6"


def line_of(message: str, *arguments: Any, exc_info: Any = None) -> dict[str, Any]:
    record = logging.getLogRecordFactory()("gateway.x", logging.WARNING, __file__, 1, message, arguments, exc_info)
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert isinstance(line, dict)
    return line


def test_record_without_a_request_has_time_level_logger_and_message() -> None:
    line = line_of("Found %d servers", 3)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "WARNING", "logger": "gateway.x", "message": "Found 3 servers"}


def test_record_of_a_request_says_whose_it_is() -> None:
    headers = [(b"x-request-id", REQUEST_ID.encode())]
    tokens = [
        (current_request, current_request.set(CurrentRequest("notes", {"type": "http", "headers": headers}))),
        (current_identity, current_identity.set(Identity("ada", "canary-key"))),
        (current_conversation, current_conversation.set(lambda: CONVERSATION)),
    ]
    try:
        line = line_of("Hello")
    finally:
        for variable, token in tokens:
            variable.reset(token)  # type: ignore[arg-type]
    del line["time"], line["level"], line["logger"]
    assert line == {
        "message": "Hello",
        "server": "notes",
        "request": REQUEST_ID,
        "user": "ada",
        "transport": "sse",
        "era": "2025-11-25",
        "session": str(UUID(int=7)),
    }


def test_traceback_is_one_field() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = line_of("Failed", exc_info=sys.exc_info())
    assert line["error"].splitlines()[-1] == "ValueError: broken"


def test_traceback_that_the_redactor_has_cleaned_is_not_formatted_again() -> None:
    try:
        raise ValueError("canary-key")
    except ValueError:
        record = logging.LogRecord("gateway.x", logging.ERROR, __file__, 1, "Failed", (), sys.exc_info())
    record.exc_text = "ValueError: [redacted]"
    text = JsonLines().format(record)
    assert json.loads(text)["error"] == "ValueError: [redacted]"
    assert "canary-key" not in text


def test_what_is_given_as_extra_is_left_out() -> None:
    record = logging.makeLogRecord({"msg": "Forbidden", "request": "<POST '/x/canary-key'>", "status_code": 403})
    assert "canary-key" not in JsonLines().format(record)


def test_line_breaks_in_a_message_forge_no_line() -> None:
    assert line_of("%s", 'a\n{"level": "INFO"}')["message"]


@pytest.mark.parametrize("value", ["canary key", "gumcp_AbCdEfGh_secret", "a" * 65, "\u202e"])
def test_request_ids_that_no_proxy_makes_are_left_out(value: str) -> None:
    assert "request" not in access_line([(b"x-request-id", value.encode())])


def access_line(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    stream = io.StringIO()
    details = {
        "path": "/notes/[redacted]",
        "status": 200,
        "method": "POST",
        "client": "127.0.0.1:5000",
        "time_taken": 0.0123456789,
        "size": 42,
        "headers": headers,
    }
    JsonAccessLog(stream)("http", "complete", details)
    (text,) = stream.getvalue().splitlines()
    return dict(json.loads(text))


def test_access_line_has_what_the_text_has() -> None:
    line = access_line([(b"host", b"h"), (b"x-request-id", REQUEST_ID.encode())])
    del line["time"]
    assert line == {
        "level": "INFO",
        "logger": "access",
        "client": "127.0.0.1:5000",
        "method": "POST",
        "path": "/notes/[redacted]",
        "status": 200,
        "bytes": 42,
        "seconds": 0.012346,
        "request": REQUEST_ID,
    }


def test_other_actions_write_no_line() -> None:
    stream = io.StringIO()
    JsonAccessLog(stream)("websocket", "connecting", {})
    assert stream.getvalue() == ""
