import json
import math
from typing import Any

import pytest
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

from gateway.exceptions import InvalidMessage
from gateway.jsonrpc import error_body, json_body, message_body, parse_message, request_key, result_body


def as_bytes(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode()


@pytest.mark.parametrize("request_id", [0, 1, -1, 2**53, "", "a", "1", "ü"])
def test_request_keeps_its_id_as_it_was(request_id: int | str) -> None:
    message = parse_message(as_bytes(id=request_id, method="ping"))
    assert isinstance(message, JSONRPCRequest)
    assert message.id == request_id
    assert type(message.id) is type(request_id)


def test_kinds_of_messages_are_told_apart() -> None:
    assert isinstance(parse_message(as_bytes(method="notifications/initialized")), JSONRPCNotification)
    assert isinstance(parse_message(as_bytes(id=1, result={})), JSONRPCResponse)
    assert isinstance(parse_message(as_bytes(id=1, error={"code": 1, "message": "x"})), JSONRPCError)


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"\xff", b"{'a': 1}", b'{"a": NaN}', b"\x00"])
def test_body_that_is_no_json_is_a_parse_error(body: bytes) -> None:
    with pytest.raises(InvalidMessage) as error:
        parse_message(body)
    assert error.value.code == PARSE_ERROR


@pytest.mark.parametrize("request_id", [None, True, False, 1.0, 1.5, [], {}])
def test_request_with_an_id_that_the_protocol_forbids_is_invalid(request_id: Any) -> None:
    with pytest.raises(InvalidMessage) as error:
        parse_message(as_bytes(id=request_id, method="ping"))
    assert error.value.code == INVALID_REQUEST
    assert error.value.request_id is None


@pytest.mark.parametrize("body", [b"[]", b'[{"jsonrpc": "2.0", "method": "a"}]', b"1", b"null", b'"a"', b"true", b"{}"])
def test_json_that_is_no_message_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidMessage) as error:
        parse_message(body)
    assert error.value.code == INVALID_REQUEST


def test_errors_do_not_repeat_what_was_sent() -> None:
    for body in (b'{"canary', b'{"canary": 1}', b'["canary"]', as_bytes(id=["canary"], method="canary")):
        with pytest.raises(InvalidMessage) as error:
            parse_message(body)
        assert "canary" not in str(error.value)
        assert error.value.__cause__ is None


def test_text_that_is_not_utf_8_is_written_readably_wherever_it_stands() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    result = JSONRPCResponse(jsonrpc="2.0", id=1, result={"content": [{"type": "text", name: name}]})
    assert json.loads(message_body(result)) == {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {"content": [{"type": "text", "caf\\udce9": "caf\\udce9"}]},
    }
    error = JSONRPCError(jsonrpc="2.0", id="a", error=ErrorData(code=-32000, message=name, data=[name]))
    assert json.loads(message_body(error))["error"] == {
        "code": -32000,
        "message": "caf\\udce9",
        "data": ["caf\\udce9"],
    }


def test_answer_with_an_object_that_is_no_json_is_an_error_with_its_id() -> None:
    result = JSONRPCResponse(jsonrpc="2.0", id=7, result={"structuredContent": {"x": object()}})
    assert json.loads(message_body(result)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {"code": INTERNAL_ERROR, "message": "The server's answer cannot be written as JSON."},
    }
    error = JSONRPCError(jsonrpc="2.0", id="a", error=ErrorData(code=-32000, message="failed", data=object()))
    assert json.loads(message_body(error)) == {
        "jsonrpc": "2.0",
        "id": "a",
        "error": {"code": -32000, "message": "failed"},
    }


def test_number_that_json_does_not_have_is_written_as_null() -> None:
    result = {"structuredContent": {"numbers": [math.nan, math.inf, 1.5]}}
    written = {"structuredContent": {"numbers": [None, None, 1.5]}}
    assert json.loads(result_body(1, result))["result"] == written
    assert json.loads(json_body(result)) == written


def test_notification_with_an_object_that_is_no_json_is_refused_to_its_sender() -> None:
    notification = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={"data": object()})
    with pytest.raises(ValueError, match="serialize"):
        message_body(notification)


def test_number_and_text_of_one_id_compare_equal() -> None:
    assert request_key("1") == request_key(1)
    assert request_key("1.0") != request_key(1)
    assert request_key("a") != request_key("b")


def test_error_body_is_json_rpc_with_the_id_or_null() -> None:
    assert json.loads(error_body(-32600, "no", 7)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {"code": -32600, "message": "no"},
    }
    assert json.loads(error_body(-32700, "no"))["id"] is None
