"""Bodies that are too long, endless, or not what was announced: refused early, held nowhere."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import re
import selectors
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.figures import MIB, Record, Watched, milliseconds, percentile, size
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.smuggling import CANARY, READ, REFUSED

FIELDS = b"POST /workshop/ada HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
PING = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()


@pytest.fixture(scope="module")
def host(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host whose temporary files are in a folder of its own, beside its database."""
    data = tmp_path_factory.mktemp("data")
    (data / "tmp").mkdir()
    with start_host(data_dir=data, TMPDIR=str(data / "tmp")) as host:
        yield host


def send_all(host: HostProcess, opening: bytes, chunk: bytes = b"", most: int = 0) -> tuple[int, int]:
    """Send until the host answers; its status, and how many bytes of the body it let come."""
    with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
        connection.sendall(opening)
        sent = 0
        left = memoryview(chunk)
        connection.settimeout(0)
        answer = b""
        end = time.monotonic() + 30
        while b"\r\n\r\n" not in answer and time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                received = connection.recv(65536)
                answer += received
                if not received:
                    break
            if sent < most:
                with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    left = left or memoryview(chunk)
                    taken = connection.send(left)
                    left, sent = left[taken:], sent + taken
            else:
                time.sleep(0.01)
        return int(answer[9:12] or 0), sent


BODIES = {
    "1 GiB announced": (b"Content-Length: 1073741824\r\n\r\n", b"x" * 65536, 2**30, {413}),
    "1 GiB announced, none sent": (b"Content-Length: 1073741824\r\n\r\n", b"", 0, {413}),
    "endless chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n", 2**30, {413}),
    "endless chunks of a byte": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000, 2**30, {400}),
    "gzip": (
        b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(PING)) + gzip.compress(PING),
        b"",
        0,
        {400, 415},
    ),
}


def test_bodies_are_refused_and_held_nowhere(host: HostProcess, record: Record) -> None:
    watched = Watched(host.pid)
    host.request("GET", "/health_check")
    with ThreadPoolExecutor() as threads:
        # The host waits for the rest of this one while it refuses the others.
        less = threads.submit(send_all, host, FIELDS + b"Content-Length: 1000\r\n\r\n" + PING)
        for name, (fields, chunk, most, expected) in BODIES.items():
            before = watched.mib
            status, sent = send_all(host, FIELDS + fields, chunk, most)
            grown = watched.mib - before
            record(name, f"{status}, {sent / MIB:.1f} MiB taken, {grown:.1f} MiB held, {files(host)} temporary files")
            assert status in expected, name
            assert not files(host), name
            # The limit is 4 MiB; what is in the kernel's buffers when the refusal comes was taken, too.
            assert sent < 16 * MIB, name
            assert grown < 10, name
            if name == "1 GiB announced":
                assert not less.done()
        assert less.result()[0] == 408
        record("less than announced", f"408, {files(host)} temporary files")
    assert not files(host)


TINY_CHUNKS = FIELDS + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000
SENDERS = size(50, 200)
SECONDS = size(3, 10)


def send_tiny_chunks(port: int, end: float) -> None:
    """Send bodies in chunks of one byte on many connections at once; open one anew when it is refused."""
    selector = selectors.DefaultSelector()

    def connect() -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, [memoryview(TINY_CHUNKS)])

    for _ in range(SENDERS):
        connect()
    while time.monotonic() < end:
        for key, events in selector.select(0.1):
            connection, left = key.fileobj, key.data
            assert isinstance(connection, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    left[0] = left[0][connection.send(left[0]) :] or memoryview(b"1\r\nx\r\n" * 10_000)
                if events & selectors.EVENT_READ and connection.recv(65536):
                    raise ConnectionError("refused")
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(connection)
                connection.close()
                connect()
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]


def test_tiny_chunks_are_refused_counted_and_keep_no_probe_waiting(host: HostProcess, record: Record) -> None:
    before = host.metric("gumcp_connection_faults_total", reason="wasteful_body")
    end = time.monotonic() + SECONDS
    attack = multiprocessing.get_context("spawn").Process(target=send_tiny_chunks, args=(host.port, end))
    attack.start()
    until(lambda: host.metric("gumcp_connection_faults_total", reason="wasteful_body") > before)
    latencies = []
    while time.monotonic() < end:
        started = time.monotonic()
        assert host.request("GET", "/health_check").status == 200
        latencies.append(time.monotonic() - started)
        time.sleep(0.02)
    attack.join(10)
    refused = host.metric("gumcp_connection_faults_total", reason="wasteful_body") - before
    record(f"{SENDERS} connections with chunks of a byte", f"{refused:.0f} refused; health {milliseconds(latencies)}")
    assert attack.exitcode == 0
    assert percentile(latencies, 99) < 1


def files(host: HostProcess) -> int:
    return len(list((host.data_dir / "tmp").iterdir()))


def test_more_than_announced_is_the_next_request_and_no_good_one(host: HostProcess) -> None:
    with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
        connection.sendall(FIELDS + b"Content-Length: %d\r\n\r\n%b" % (len(PING), PING) + b"surplus\r\n\r\n")
        answer = b""
        while received := connection.recv(65536):
            answer += received
    assert re.findall(rb"HTTP/1\.1 (\d{3})", answer) == [b"400", b"400"]  # no session; then no request at all


def conversation(port: int, data: bytes) -> list[int]:
    """The statuses of everything that is answered to `data`."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(65536):
                answer += received
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def test_smuggling_corpus_is_refused_or_read_as_one_request(host: HostProcess, record: Record) -> None:
    """On the whole host; `tests.serving.test_smuggling` checks what the application gets to see."""
    canary = CANARY.replace(b"/canary", b"/health_check")
    seen = {name: conversation(host.port, request + canary) for name, request in REFUSED.items()}
    wrong = {name: statuses for name, statuses in seen.items() if len(statuses) != 1 or not 400 <= statuses[0] < 500}
    assert not wrong
    read = {name: conversation(host.port, request + canary) for name, (request, _) in READ.items()}
    assert not {name: statuses for name, statuses in read.items() if len(statuses) != 2 or statuses[1] != 200}
    record("smuggling corpus", f"{len(seen)} refused, {len(read)} read as one request")


def test_temporary_folder_is_where_python_looks(host: HostProcess) -> None:
    """Or the tests above would look in the wrong place."""
    environment = Path(f"/proc/{host.pid}/environ").read_bytes()
    assert f"TMPDIR={host.data_dir / 'tmp'}".encode() in environment
