"""TLS that ends in our Daphne (`-e ssl:…`): what holds for plain connections holds here too."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.certificates import write_certificate
from tests.support.deadlines import within
from tests.support.serving_process import HURRIED, Client, Host, running_host, statuses

pytestmark = pytest.mark.usefixtures("processes")

MEBIBYTE = 1024 * 1024
SOON_SECONDS = 3.0
"""What a host that has nothing to wait for may take to end, on a busy machine."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem` and `key.pem` of localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    write_certificate(folder, "localhost")
    return folder


@pytest.fixture(scope="module")
def context(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


def endpoint(certificate: Path) -> str:
    files = f"privateKey={certificate / 'key.pem'}:certKey={certificate / 'cert.pem'}"
    return f"ssl:0:{files}:interface=127.0.0.1"


@pytest.fixture(scope="module")
def host(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    log = tmp_path_factory.mktemp("host") / "log"
    with running_host(log, endpoint=endpoint(certificate), **HURRIED) as host:
        yield host


@pytest.fixture
def patient_host(certificate: Path, tmp_path: Path) -> Iterator[Host]:
    """A host with the limits as they are, which the test may end."""
    with running_host(tmp_path / "log", endpoint=endpoint(certificate)) as host:
        yield host


def cut_after(client: Client, dripped: bytes = b"") -> tuple[bytes, float]:
    """Send a byte now and then, and read, until the connection ends; what was read and when that was."""
    begun, answer, position = time.monotonic(), b"", 0
    client.socket.settimeout(0.02)
    while time.monotonic() - begun < 5:
        try:
            client.send(dripped[position : position + 1])
            position += 1
            received = client.socket.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            received = b""
        if not received:
            return answer, time.monotonic() - begun
        answer += received
    raise AssertionError("never cut")


def test_request_is_answered_and_its_scheme_is_https(host: Host, context: ssl.SSLContext) -> None:
    with host.connect_tls(context) as client:
        for _ in range(2):
            status, content = client.get("/echo")
            assert (status, content["scheme"]) == (200, "https")
            assert content["client"] == list(client.socket.getsockname())
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 90000\r\n\r\n" + bytes(90_000))
        assert client.answer()[1]["body_bytes"] == 90_000
        options = client.get("/state")[1]["options"]
    assert options["SO_KEEPALIVE"] == options["TCP_NODELAY"] == 1
    assert options["TCP_USER_TIMEOUT"] > 0


def test_large_answer_arrives_whole_before_the_connection_ends(host: Host, context: ssl.SSLContext) -> None:
    with host.connect_tls(context) as client:
        client.send(b"GET /big?size=8000000 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        response = client.response()
        assert len(response.read()) == 8_000_000
        # In order, by a closure alert: anything else raises here.
        assert client.socket.recv(1) == b""


def test_client_that_never_shakes_hands_is_cut(host: Host) -> None:
    cut_before = host.count(event="header_timeout")
    with host.connect() as client:
        answer, seconds = cut_after(client)
    assert answer == b""
    assert 0.9 < seconds < within(2)
    host.wait_until_told(event="header_timeout", times=cut_before + 1)


def test_client_that_says_nothing_is_cut(host: Host, context: ssl.SSLContext) -> None:
    with host.connect_tls(context) as client:
        answer, seconds = cut_after(client)
    assert answer == b""
    assert 0.9 < seconds < within(2)


@pytest.mark.parametrize(
    ("opening", "dripped"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n", b"x-name: value\r\n" * 100),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n", b"x" * 1000),
    ],
)
def test_request_that_drips_is_cut(host: Host, context: ssl.SSLContext, opening: bytes, dripped: bytes) -> None:
    with host.connect_tls(context) as client:
        client.send(opening)
        answer, seconds = cut_after(client, dripped)
    assert statuses(answer) == [408]
    assert seconds < within(2)


def test_idle_connection_is_closed_though_its_client_does_not_answer(host: Host, context: ssl.SSLContext) -> None:
    with host.connect_tls(context) as idle, host.connect_tls(context) as other:
        assert idle.get("/echo")[0] == 200

        def open_connections() -> int:
            return int(other.get("/state")[1]["open"])

        assert open_connections() == 2
        host.until(lambda: open_connections() == 1, seconds=3)


def test_send_waits_for_a_client_that_does_not_read(patient_host: Host, context: ssl.SSLContext) -> None:
    host = patient_host
    process = psutil.Process(host.process.pid)
    with host.connect_tls(context) as client, host.connect_tls(context) as other:
        other.get("/echo")
        memory = process.memory_info().rss
        client.send(b"GET /flood?megabytes=64 HTTP/1.1\r\nHost: h\r\n\r\n")
        received = len(client.socket.recv(1))
        assert other.get("/echo")[0] == 200
        assert not host.count(flooded=32)
        assert process.memory_info().rss - memory < 8 * MEBIBYTE
        while received < 64 * MEBIBYTE:
            received += len(client.socket.recv(MEBIBYTE))
        host.wait_until_told(flooded=64)


@pytest.mark.parametrize("target", ["/flood?megabytes=64", f"/big?size={30 * MEBIBYTE}"])
def test_client_that_does_not_read_is_cut_and_counted(host: Host, context: ssl.SSLContext, target: str) -> None:
    cut_before = host.count(event="slow_reader")
    with host.connect_tls(context) as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target.encode())
        host.wait_until_told(seconds=4, event="slow_reader", times=cut_before + 1)
        host.wait_until_told(ended=target.partition("?")[0])


def test_client_that_goes_on_sending_still_reads_the_refusal(host: Host, context: ssl.SSLContext) -> None:
    with host.connect_tls(context) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(50):
            client.send(bytes(10_000))
        assert statuses(client.read_to_end()) == [413]


def test_surplus_connection_is_answered_503(certificate: Path, context: ssl.SSLContext, tmp_path: Path) -> None:
    with running_host(tmp_path / "log", endpoint=endpoint(certificate), limits={"connections": 1}) as host:
        with host.connect_tls(context) as client:
            assert client.get("/echo")[0] == 200
            with host.connect_tls(context) as surplus:
                assert statuses(surplus.read_to_end()) == [503]
            host.wait_until_told(event="too_many_connections")
            # More than are told so at one time: these are closed at once, handshake or none.
            crowd = []
            for _ in range(300):
                with contextlib.suppress(
                    ConnectionResetError
                ):  # on a busy machine even before it is told of its connection
                    crowd.append(host.connect())
            host.wait_until_told(event="too_many_connections", times=301)
            host.until(lambda: client.get("/state")[1]["open"] == 1)
            for one in crowd:
                one.socket.close()
        host.until(lambda: _is_served(host, context))
        assert "Traceback" not in host.log()


def _is_served(host: Host, context: ssl.SSLContext) -> bool:
    with host.connect_tls(context) as client:
        return client.get("/echo")[0] == 200


def test_sigterm_does_not_wait_for_clients_that_answer_nothing(patient_host: Host, context: ssl.SSLContext) -> None:
    """One never shakes hands, one is idle and one reads a stream: neither reads the closure alert."""
    host = patient_host
    with host.connect(), host.connect_tls(context) as idle, host.connect_tls(context) as stream:
        assert idle.get("/echo")[0] == 200
        stream.send(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        stream.read_until(b"begun\n\r\n")
        begun = time.monotonic()
        host.terminate()
        # The grace is twenty seconds here.
        assert host.exit_status() == 0, host.log()
        assert time.monotonic() - begun < within(SOON_SECONDS)
        assert stream.read_to_end().endswith(b"4\r\nbye\n\r\n0\r\n\r\n")


def test_call_in_flight_is_answered_after_sigterm(patient_host: Host, context: ssl.SSLContext) -> None:
    host = patient_host
    with host.connect_tls(context) as client, host.connect_tls(context) as other:
        client.send(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
        host.wait_until_told(request="/wait")
        host.terminate()
        host.wait_until_told(hook="drain")
        assert other.get("/release") == (200, {"draining": True})
        assert client.answer() == (200, "released")
        assert host.exit_status() == 0
