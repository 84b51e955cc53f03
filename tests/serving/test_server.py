"""What our Daphne does that Daphne's own does not, by the numbers of `gateway.serving.server`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.processes import ROOT, free_port, is_listening, running
from tests.support.serving_process import Client, Host, running_host, statuses

pytestmark = pytest.mark.usefixtures("processes")

MEBIBYTE = 1024 * 1024


def state(host: Host) -> dict[str, Any]:
    return host.get("/state")[1]


@pytest.fixture(scope="module")
def patient_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with the limits as they are."""
    with running_host(tmp_path_factory.mktemp("host") / "log") as host:
        yield host


# The exchange itself


def test_disconnect_is_received_at_once_and_ever_after(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        client.read_until(b"begun\n\r\n")
    host.wait_until_told(seconds=1, left=["http.disconnect"] * 4)


def test_application_that_sends_to_nobody_does_not_hold_the_loop(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /spin HTTP/1.1\r\nHost: h\r\n\r\n")
        client.socket.recv(1)
    assert host.get("/echo")[0] == 200
    host.wait_until_told(ended="/spin")


# 1


@pytest.mark.parametrize("path", ["/boom", "/boom-after-start", "/forget", "/split"])
def test_1_failure_before_the_first_byte_is_a_500_and_the_connection_goes_on(host: Host, path: str) -> None:
    with host.connect() as client:
        assert client.get(path) == (500, {"error": "Internal Server Error"})
        assert client.get("/echo")[0] == 200


@pytest.mark.parametrize("path", ["/boom-in-stream", "/forget-in-stream"])
def test_1_failure_in_the_middle_is_a_reset(host: Host, path: str) -> None:
    with host.connect() as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
        assert client.is_reset()


def test_1_hundred_failures_of_each_kind_leave_nothing_behind(patient_host: Host) -> None:
    host = patient_host
    for path in ("/boom", "/boom-after-start", "/boom-in-stream", "/boom-after-end"):
        clients = [host.connect() for _ in range(100)]
        for client in clients:
            client.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
        host.wait_until_told(ended=path, times=100)
        for client in clients:
            client.socket.close()
        begun = time.monotonic()
        assert host.get("/boom")[0] == 500
        assert time.monotonic() - begun < within(1)
    host.until(lambda: (state(host)["connections"], state(host)["open"]) == (1, 1))


# 2 and 3


def test_2_send_waits_for_a_client_that_does_not_read(patient_host: Host) -> None:
    host = patient_host
    process = psutil.Process(host.process.pid)
    host.get("/echo")
    memory = process.memory_info().rss
    with host.connect() as client:
        client.send(b"GET /flood?megabytes=64 HTTP/1.1\r\nHost: h\r\n\r\n")
        client.socket.recv(1)
        # What is in flight is bounded by the buffers of the kernel, a few megabytes on both sides.
        assert host.get("/echo")[0] == 200
        assert not host.count(flooded=32)
        assert process.memory_info().rss - memory < 4 * MEBIBYTE
        received = 1
        while received < 64 * MEBIBYTE:
            received += len(client.socket.recv(MEBIBYTE))
        host.wait_until_told(flooded=64)
    assert process.memory_info().rss - memory < 8 * MEBIBYTE


def test_2_response_larger_than_every_buffer_arrives_whole(host: Host) -> None:
    with host.connect() as client:
        status, body = client.get(f"/big?size={20 * MEBIBYTE}")
    assert (status, len(body)) == (200, 20 * MEBIBYTE)


def test_2_pipelined_requests_of_a_client_that_does_not_read_wait(patient_host: Host) -> None:
    host = patient_host
    with host.connect() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(b"GET /big/pipelined?size=8000000 HTTP/1.1\r\nHost: h\r\n\r\n" * 100)
        host.wait_until_told(request="/big/pipelined")
        assert host.get("/echo")[0] == 200
        assert host.count(request="/big/pipelined") <= 2


@pytest.mark.parametrize("target", ["/flood?megabytes=64", f"/big?size={30 * MEBIBYTE}"])
def test_3_client_that_does_not_read_is_cut_and_counted(host: Host, target: str) -> None:
    cut_before = host.count(event="slow_reader")
    with host.connect() as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target.encode())
        host.wait_until_told(seconds=4, event="slow_reader", times=cut_before + 1)
        path = target.partition("?")[0]
        host.wait_until_told(ended=path)
        assert client.is_reset()


def test_3_client_that_reads_slowly_but_steadily_is_not_cut(tmp_path: Path) -> None:
    limits = {"slow_reader_seconds": 0.6, "buffered_bytes": 1000}
    with running_host(tmp_path / "log", limits=limits) as host, host.connect() as client:
        client.send(f"GET /big?size={12 * MEBIBYTE} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        received, begun = 0, time.monotonic()
        while data := client.socket.recv(64 * 1024):
            received += len(data)
            # As slow as makes the whole take two deadlines
            while received / (12 * MEBIBYTE) > (time.monotonic() - begun) / 1.3:
                time.sleep(0.005)
        assert received > 12 * MEBIBYTE
        assert not host.count(event="slow_reader")


@pytest.mark.parametrize("behind", [b"\r\n", b"no request\r\n\r\n"])
def test_last_answer_that_is_read_slowly_arrives_whole_though_more_was_sent(patient_host: Host, behind: bytes) -> None:
    """The time in which a client may go on sending begins after the answer; a reset would take the rest along."""
    size = 12 * MEBIBYTE
    last = b"Connection: close\r\n" if behind == b"\r\n" else b""
    with patient_host.connect() as client:
        client.send(f"GET /big?size={size} HTTP/1.1\r\nHost: h\r\n".encode() + last + b"\r\n" + behind)
        received, begun = 0, time.monotonic()
        while data := client.socket.recv(64 * 1024):
            received += len(data)
            while received / size > (time.monotonic() - begun) / 5:
                time.sleep(0.01)
    assert received > size


# 4


def cut_after(client: Client, dripped: bytes, seconds: float) -> tuple[bytes, float]:
    """Send a byte every 20 ms until the server answers or closes; tell its answer and when it came."""
    begun = time.monotonic()
    client.socket.settimeout(0.02)
    for position in range(10_000):
        with contextlib.suppress(TimeoutError):
            return client.socket.recv(65536), time.monotonic() - begun
        assert time.monotonic() - begun < within(seconds), "never cut"
        client.send(dripped[position : position + 1])
    raise AssertionError("never cut")


def test_4_headers_that_drip_are_cut(host: Host) -> None:
    with host.connect() as client:
        answer, seconds = cut_after(client, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"x-name: value\r\n" * 1000, 3)
    assert statuses(answer) == [408]
    assert 0.9 < seconds < within(1.6)
    host.wait_until_told(event="header_timeout")


def test_4_later_headers_that_drip_are_cut(host: Host) -> None:
    with host.connect() as client:
        assert client.get("/echo")[0] == 200
        answer, seconds = cut_after(client, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"x-name: value\r\n" * 1000, 3)
    assert statuses(answer) == [408]
    assert 0.9 < seconds < within(1.6)


def test_4_socket_that_sends_nothing_is_closed(host: Host) -> None:
    begun = time.monotonic()
    with host.connect() as client:
        assert client.read_to_end() == b""
    assert 0.9 < time.monotonic() - begun < within(1.6)


@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Content-Length: 9000", b"x" * 9000), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n" * 2000)],
)
def test_4_body_that_drips_is_cut(host: Host, framing: bytes, body: bytes) -> None:
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % framing)
        answer, seconds = cut_after(client, body, 3)
    assert statuses(answer) == [408]
    assert 0.5 < seconds < within(1.5)
    host.wait_until_told(event="body_timeout")


def test_4_body_that_comes_fast_enough_but_too_long_is_cut(host: Host) -> None:
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 90000\r\n\r\n" + b"x" * 3000)
        answer, seconds = cut_after(client, b"x" * 9000, 4)
    assert statuses(answer) == [408]
    assert 1.8 < seconds < within(2.8)


def test_4_five_hundred_dripping_clients_do_not_slow_the_others(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(500):
            clients.append(stack.enter_context(host.connect()))
            clients[-1].send(b"GET / HT")
        begun = time.monotonic()
        assert host.get("/echo")[0] == 200
        assert time.monotonic() - begun < within(0.5)
        for client in clients:
            assert statuses(client.read_to_end()) == [408]
    host.until(lambda: state(host)["open"] == 1)


# 5


def open_files(host: Host) -> list[str]:
    directory = Path(f"/proc/{host.process.pid}/fd")
    targets = []
    for entry in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(entry))
    return [target for target in targets if target.startswith("/tmp") and "(deleted)" in target]


def test_5_body_announced_too_large_is_refused_before_it_is_sent(host: Host) -> None:
    refused_before = host.count(event="body_too_large")
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741824\r\n\r\n")
        assert statuses(client.read_to_end()) == [413]
    host.wait_until_told(event="body_too_large", times=refused_before + 1)


def test_5_client_that_goes_on_sending_still_reads_the_refusal(host: Host) -> None:
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(50):
            client.send(bytes(10_000))
        assert statuses(client.read_to_end()) == [413]


@pytest.mark.parametrize(
    ("chunk", "status"), [(b"2710\r\n" + bytes(10_000) + b"\r\n", 413), (b"1\r\nx\r\n" * 2000, 400)]
)
def test_5_endless_chunks_are_refused_at_the_limit(host: Host, chunk: bytes, status: int) -> None:
    with host.connect() as client:
        client.send(b"POST /endless HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        client.socket.settimeout(0.01)
        answer = b""
        while not answer:
            with contextlib.suppress(TimeoutError):
                client.send(chunk)
                sent += len(chunk)
            with contextlib.suppress(TimeoutError):
                answer = client.socket.recv(65536)
            assert sent < 500_000
    assert statuses(answer) == [status]
    assert not host.count(request="/endless")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_5_body_of_exactly_the_limit_is_read_in_memory(host: Host, framing: str) -> None:
    body = os.urandom(100_000)
    with host.connect() as client:
        head = b"POST /echo HTTP/1.1\r\nHost: h\r\n"
        if framing == "length":
            client.send(head + b"Content-Length: 100000\r\n\r\n" + body[:99_999])
        else:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + body[:99_999])
        assert open_files(host) == []
        client.send(body[99_999:] + (b"" if framing == "length" else b"\r\n0\r\n\r\n"))
        status, content = client.answer()
    assert (status, content["body_bytes"]) == (200, 100_000)
    assert content["body_digest"] == hashlib.sha256(body).hexdigest()


def test_5_encoded_body_is_passed_on_as_it_is(host: Host) -> None:
    with host.connect() as client:
        client.send(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"
        )
        assert client.answer()[1]["body_bytes"] == 4


def test_5_client_that_leaves_in_the_body_starts_no_application(host: Host) -> None:
    with host.connect() as client:
        client.send(b"POST /left-early HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nfive.")
    host.until(lambda: state(host)["open"] == 1)
    assert not host.count(request="/left-early")


@pytest.fixture
def full_host(tmp_path: Path) -> Iterator[Host]:
    """A host with room for four bodies of 100 kB."""
    with running_host(tmp_path / "log", limits={"unfinished_bodies_bytes": 410_000}) as host:
        yield host


def nearly_whole(host: Host, source: str, framing: str = "length", size: int = 100_000) -> Client:
    """Send all of a body but its last byte."""
    client = host.connect(source)
    head = b"POST /echo HTTP/1.1\r\nHost: h\r\n"
    if framing == "length":
        client.send(head + b"Content-Length: %d\r\n\r\n" % size + bytes(size - 1))
    else:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size - 1))
    return client


def finish(client: Client, framing: str = "length") -> int:
    client.send(b"x" if framing == "length" else b"x\r\n0\r\n\r\n")
    return client.answer()[0]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_5_oldest_body_gives_way_when_all_hold_too_much(full_host: Host, framing: str) -> None:
    host = full_host
    with contextlib.ExitStack() as stack:
        clients = []
        for last in range(1, 7):
            clients.append(stack.enter_context(nearly_whole(host, f"127.0.0.{last}", framing)))
            # The host has to have read it before the next one comes.
            if last > 4:
                host.wait_until_told(event="too_many_bodies", times=last - 4)
            else:
                host.until(lambda last=last: state(host)["unfinished_bytes"] >= last * 99_999)
        for gone in clients[:2]:
            assert statuses(gone.read_to_end()) == [503]
        assert [finish(client, framing) for client in clients[2:]] == [200] * 4
        assert state(host)["unfinished_bytes"] == 0
    assert host.count(event="too_many_bodies") == 2


def test_5_address_that_holds_most_gives_way_to_others(full_host: Host) -> None:
    host = full_host
    with nearly_whole(host, "127.0.0.2") as honest, contextlib.ExitStack() as stack:
        host.until(lambda: state(host)["unfinished_bytes"] >= 99_999)
        for number in range(1, 11):
            stack.enter_context(nearly_whole(host, "127.0.0.3"))
            if number > 3:
                host.wait_until_told(event="too_many_bodies", times=number - 3)
        assert finish(honest) == 200


def test_5_small_bodies_pass_while_large_ones_give_way(full_host: Host) -> None:
    host = full_host
    with nearly_whole(host, "127.0.0.1", size=5_000) as small, contextlib.ExitStack() as stack:
        host.until(lambda: state(host)["unfinished_bytes"] >= 4_999)
        for _ in range(8):
            stack.enter_context(nearly_whole(host, "127.0.0.1"))
        host.wait_until_told(event="too_many_bodies", times=4)
        assert finish(small) == 200
        with host.connect() as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n" + bytes(5_000))
            assert client.answer()[0] == 200


def test_5_bodies_that_were_left_or_refused_are_not_counted(full_host: Host) -> None:
    host = full_host
    for _ in range(10):
        with nearly_whole(host, "127.0.0.1"):
            pass
        host.until(lambda: state(host)["unfinished_bytes"] == 0)
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")
        host.until(lambda: state(host)["unfinished_bytes"] == 5)
        client.send(b"no chunk")
        assert statuses(client.read_to_end()) == [400]
    host.until(lambda: state(host)["unfinished_bytes"] == 0)
    assert not host.count(event="too_many_bodies")


# 6, 7 and 8


def test_6_sockets_notice_a_vanished_peer_within_a_minute(host: Host) -> None:
    options = state(host)["options"]
    assert options["SO_KEEPALIVE"] == options["TCP_NODELAY"] == 1
    assert options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"] <= 60
    assert options["TCP_USER_TIMEOUT"] / 1000 + options["TCP_KEEPINTVL"] <= 60


def test_7_two_hundred_clients_connect_while_the_loop_stands_still(patient_host: Host) -> None:
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < 256:
        pytest.skip("the kernel allows no longer queue")
    host = patient_host
    host.get("/echo")
    host.process.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(200):
            connected = socket.create_connection(("127.0.0.1", host.port), 1)
            connected.settimeout(WAIT_SECONDS)
            clients.append(stack.enter_context(Client(connected)))
        host.process.send_signal(signal.SIGCONT)
        for client in clients:
            assert client.get("/echo")[0] == 200


def test_8_idle_connection_is_kept_for_its_time_and_closed_without_a_word(host: Host) -> None:
    with host.connect() as client:
        assert client.get("/echo")[0] == 200
        begun = time.monotonic()
        assert client.read_to_end() == b""
    assert 1.1 < time.monotonic() - begun < within(1.8)


# 9: doubled and missing Host are in tests.support.smuggling


def test_9_client_cannot_set_the_root_path(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\nDaphne-Root-Path: /other\r\n\r\n")
        content = client.answer()[1]
    assert content["root_path"] == ""
    assert [name for name, _ in content["headers"]] == ["host"]


# 10


def test_10_address_with_too_many_connections_is_answered_503(tmp_path: Path) -> None:
    limits = {"connections_per_address": 3}
    with running_host(tmp_path / "log", limits=limits) as host, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(host.connect()) for _ in range(3)]
        for client in clients:
            assert client.get("/echo")[0] == 200
        with host.connect() as surplus:
            assert surplus.get("/echo")[0] == 503
        host.wait_until_told(event="too_many_connections")
        with host.connect(source="127.0.0.2") as other:
            assert other.get("/echo")[0] == 200
        clients[0].socket.close()
        host.until(lambda: host.get("/echo")[0] == 200)


def test_10_too_many_connections_in_all_are_answered_503(tmp_path: Path) -> None:
    with running_host(tmp_path / "log", limits={"connections": 3}) as host:
        with contextlib.ExitStack() as stack:
            for last in range(1, 4):
                assert stack.enter_context(host.connect(source=f"127.0.0.{last}")).get("/echo")[0] == 200
            with host.connect(source="127.0.0.4") as surplus:
                assert surplus.get("/echo")[0] == 503
        host.until(lambda: host.get("/echo")[0] == 200)


def test_10_addresses_are_not_limited_behind_a_proxy(tmp_path: Path) -> None:
    options = {
        "limits": {"connections_per_address": 1},
        "server": {"proxy_forwarded_address_header": "X-Forwarded-For"},
    }
    with running_host(tmp_path / "log", **options) as host, host.connect() as first, host.connect() as second:
        assert first.get("/echo")[0] == 200
        second.send(b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
        assert second.answer()[1]["client"] == ["192.0.2.7", 0]


@pytest.mark.parametrize("value", [b"\xff\xfe", b"192.0.2.7\r\nX-Forwarded-Proto: \xe9"])
def test_forwarded_header_that_is_no_text_is_refused_and_counted(tmp_path: Path, value: bytes) -> None:
    server = {
        "proxy_forwarded_address_header": "X-Forwarded-For",
        "proxy_forwarded_port_header": "X-Forwarded-Port",
        "proxy_forwarded_proto_header": "X-Forwarded-Proto",
    }
    with running_host(tmp_path / "log", server=server) as host:
        with host.connect() as client:
            client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: %b\r\n\r\n" % value)
            assert statuses(client.read_to_end()) == [400]
        host.wait_until_told(event="bad_request")
        assert not host.count(request="/echo")
        assert "Traceback" not in host.log()


# 12: HTTP/2 by prior knowledge is in tests.support.smuggling


def test_12_websocket_is_refused_cheaply(host: Host) -> None:
    log = host.log()
    with host.connect() as client:
        client.send(
            b"GET /websocket HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert statuses(client.read_to_end()) == [400]
    host.get("/after-websocket")
    host.wait_until_told(request="/after-websocket")
    assert not host.count(request="/websocket")
    assert "Traceback" not in host.log().removeprefix(log)


# 13


def test_13_access_line_of_a_stream_that_was_left_is_written_without_the_key(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /stream/secret/1 HTTP/1.1\r\nHost: h\r\n\r\n")
        client.read_until(b"begun\n\r\n")
        address = "{}:{}".format(*client.socket.getsockname())
    host.until(lambda: any(address in told.get("access", "") for told in host.told))
    (line,) = [told["access"] for told in host.told if address in told.get("access", "")]
    assert re.fullmatch(rf'{address} - - \[[^]]+\] "GET /stream/…/1" 200 6', line)


def test_13_access_line_of_a_request_left_before_its_answer_has_no_status(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /wait/secret/2?a=secret HTTP/1.1\r\nHost: h\r\n\r\n")
        host.wait_until_told(request="/wait/secret/2")
    host.until(lambda: any('"GET /wait/…/2?a=…" - -' in told.get("access", "") for told in host.told))


def test_13_no_key_in_access_lines_and_warnings(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /stubborn/secret HTTP/1.1\r\nHost: h\r\n\r\n")
        host.wait_until_told(request="/stubborn/secret")
    for path in ("/boom/secret", "/boom-in-stream/secret", "/echo/secret"):
        with host.connect() as client:
            client.send(b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % path.encode())
            client.read_to_end()
    for path in ("/stubborn", "/boom", "/boom-in-stream", "/echo"):
        host.until(lambda path=path: any(f"GET {path}/…" in told.get("access", "") for told in host.told))
    host.wait_until_told(swallowed=True)
    assert not [told for told in host.told if "secret" in told.get("access", "")]
    assert "took too long to shut down" in host.log()
    assert "secret" not in host.log()


def test_application_that_outlives_its_response_is_ended(host: Host) -> None:
    with host.connect() as client:
        assert client.get("/linger")[0] == 200
        host.wait_until_told(ended="/linger")


# 16


def test_16_context_of_one_request_is_not_seen_by_the_next(host: Host) -> None:
    with host.connect() as client:
        client.send(b"GET /context HTTP/1.1\r\nHost: h\r\n\r\n" * 2 + b"GET /context HTTP/1.0\r\n\r\n")
        assert client.read_to_end().count(b'"nothing"') == 3
    with host.connect() as client:
        for _ in range(3):
            assert client.get("/context") == (200, "nothing")


# The command

UNDER_DAPHNE = "tests.serving.under_daphne:application"


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_install_acts_under_daphne_and_nowhere_else(server: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with running(
        [sys.executable, "-m", server, "-p" if server == "daphne" else "--port", f"{port}", UNDER_DAPHNE],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        log=log,
        is_ready=lambda: is_listening(port),
    ) as process:
        with Client(socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)) as client:
            client.send(b"POST /key HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world")
            status, body = client.answer()
        if server == "daphne":
            assert status == 413
            with Client(socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)) as client:
                assert client.get("/key") == (200, b"Twisted is loaded")
        else:
            assert (status, body) == (200, b"Twisted is not loaded")
        process.terminate()
        process.wait(WAIT_SECONDS)
        assert ("/key" in log.read_text()) == (server == "uvicorn")
        if server == "daphne":
            assert process.returncode == 0
