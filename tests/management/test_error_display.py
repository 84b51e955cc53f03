"""How authors see errors. That commands show them so: `test_call`, `test_inspect`."""

import json
import logging
from collections.abc import Callable

import pytest
from mcp.server.mcpserver.exceptions import ToolError

from gateway.access.error_redaction import KeyInError
from gateway.management.error_display import AuthorHandler, describe_error, fold_traceback


def raised_by(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail() -> None:
    json.loads("x")


def fail_with_cause() -> None:
    try:
        fail()
    except ValueError as error:
        raise RuntimeError("could not parse") from error


def test_text_comes_first_then_the_authors_frames_then_where_a_library_raised_it() -> None:
    lines = describe_error(raised_by(fail)).splitlines()
    assert lines[0] == "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    frames = [line.rpartition(", in ")[2] for line in lines if line.startswith("  File")]
    assert frames == ["raised_by", "fail", "raw_decode"]
    assert "  raised in a library:" in lines
    assert lines[-1] == "  (frames of libraries that are left out: 3; --traceback shows them)"


def test_cause_follows_the_error() -> None:
    text = describe_error(raised_by(fail_with_cause))
    assert text.startswith("RuntimeError: could not parse\n")
    assert "\nCaused by json.decoder.JSONDecodeError: Expecting value" in text


def test_errors_in_a_group_of_groups_are_shown_each() -> None:
    errors = [raised_by(fail), ValueError("second")]
    text = describe_error(ExceptionGroup("outer", [ExceptionGroup("inner", errors)]))
    assert "JSONDecodeError" in text
    assert "ValueError: second" in text
    assert "ExceptionGroup" not in text


@pytest.mark.parametrize("wrapper", [ToolError("Error executing tool x"), KeyInError("x")])
def test_wrapper_of_the_sdk_or_the_host_is_left_out(wrapper: BaseException) -> None:
    wrapper.__cause__ = raised_by(fail)
    assert describe_error(wrapper).startswith("json.decoder.JSONDecodeError")


def test_error_without_a_frame_of_the_author_keeps_its_place() -> None:
    assert "  raised in a library:\n" in describe_error(raised_by(lambda: json.loads("x")))
    assert fold_traceback("ValueError: alone\n") == "ValueError: alone\n"


def test_error_of_a_handler_is_written_once_and_other_records_as_usual(capsys: pytest.CaptureFixture[str]) -> None:
    error = raised_by(fail)
    capsys.readouterr()
    before = list(logging.getLogger().handlers)
    with AuthorHandler(lambda text: text.replace("secret", "[redacted]")).in_use():
        logging.getLogger("kiosk").warning("a %s", "secret")
        logging.getLogger("gateway.compat.server").debug("no exception")
        logging.getLogger("gateway.compat.server").debug("failed", exc_info=error)
        logging.getLogger("mcp.server.runner").error("failed again", exc_info=error)
    printed = capsys.readouterr().err
    assert "WARNING kiosk: a [redacted]\n" in printed
    assert "no exception" not in printed
    assert printed.count("JSONDecodeError: Expecting value") == 1
    assert logging.getLogger().handlers == before
