"""The last log lines of each server: whose a line is, how many are kept."""

import logging
import threading
from collections.abc import Iterator

import pytest

from gateway.access.log_redaction import install_record_redaction
from gateway.access.redaction import PathRedactor
from gateway.apps import GatewayConfig
from gateway.host.server_log import MAX_LINE_LENGTH, MAX_LINES, ServerLog
from gateway.upstreams.child import StderrLines


@pytest.fixture
def log() -> Iterator[ServerLog]:
    log = ServerLog(GatewayConfig.current().registry)
    log.install()
    yield log
    log.uninstall()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("somebodys")
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(logging.NOTSET)


def texts(log: ServerLog, server_name: str) -> list[str]:
    return [line.text for line in log.lines(server_name)]


def test_line_of_a_servers_own_file_is_its_own(log: ServerLog, logger: logging.Logger) -> None:
    folder = next(found.folder for found in GatewayConfig.current().registry if found.name == "workshop")
    record = logger.makeRecord(logger.name, logging.INFO, str(folder / "main.py"), 1, "from %s", ("its file",), None)
    logger.handle(record)
    logger.handle(logger.makeRecord(logger.name, logging.INFO, f"{folder}-2/main.py", 1, "another", (), None))
    assert texts(log, "workshop") == ["from its file"]


def test_line_from_a_lane_is_that_servers(log: ServerLog, logger: logging.Logger) -> None:
    thread = threading.Thread(target=lambda: logger.warning("blocked"), name="lane-moody")
    thread.start()
    thread.join()
    [line] = log.lines("moody")
    assert (line.level, line.logger, line.text) == ("WARNING", "somebodys", "blocked")


def test_line_of_the_host_that_names_a_server_is_that_servers_and_no_other_line_is(log: ServerLog) -> None:
    logging.getLogger("gateway.host.anything").warning("Server %s fails", "workshop")
    logging.getLogger("gateway.host.anything").warning("Something of %s", "no-server")
    logging.getLogger("library").warning("Server %s fails", "workshop")
    assert texts(log, "workshop") == ["Server workshop fails"]
    assert texts(log, "no-server") == []


def test_what_a_child_process_prints_is_its_servers(log: ServerLog) -> None:
    StderrLines("moody").add("ready\x1b")
    assert texts(log, "moody") == [r"Server moody: ready\x1b"]


def test_lines_are_redacted_like_the_log(log: ServerLog) -> None:
    make_record = logging.getLogRecordFactory()
    install_record_redaction(PathRedactor(["workshop"]))
    try:
        logging.getLogger("gateway.host.anything").warning("%s: POST %s", "workshop", "/workshop/ada:canary-5b2e")
    finally:
        logging.setLogRecordFactory(make_record)
    assert texts(log, "workshop") == ["workshop: POST /workshop/[redacted]"]


def test_newest_lines_are_kept_and_each_is_given_once(log: ServerLog) -> None:
    logger = logging.getLogger("gateway.host.anything")
    for number in range(MAX_LINES + 10):
        logger.warning("%s %d", "workshop", number)
    lines = log.lines("workshop")
    assert [line.text for line in lines] == [f"workshop {number}" for number in range(10, MAX_LINES + 10)]
    logger.warning("%s %s", "workshop", "x" * 3 * MAX_LINE_LENGTH)
    [new] = log.lines("workshop", after=lines[-1].number)
    assert len(new.text) == MAX_LINE_LENGTH
    assert log.lines("workshop", after=new.number) == []


def test_traceback_is_part_of_its_line(log: ServerLog) -> None:
    record = logging.makeLogRecord({"name": "x", "levelname": "ERROR", "msg": "failed", "threadName": "lane-moody"})
    record.exc_text = "Traceback of it"
    log.handle(record)
    assert texts(log, "moody") == ["failed\nTraceback of it"]


def test_record_that_cannot_be_formatted_disturbs_nobody(log: ServerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "pathname": "", "threadName": "lane-moody"}))
    assert texts(log, "moody") == []
