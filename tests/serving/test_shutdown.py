"""SIGTERM in every situation that could hold it up: the exit is in time, and what can be saved is."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.deadlines import within
from tests.support.serving_process import Host, running_host, statuses

pytestmark = pytest.mark.usefixtures("processes")

GRACE_SECONDS = 0.8
"""Of a host that is in a hurry; the other has its twenty seconds, and ends before them when it can."""

SOON_SECONDS = 3.0
"""What a host that has nothing to wait for may take, on a busy machine."""


@pytest.fixture(autouse=True)
def hangups_are_noticed() -> Iterator[None]:
    """Whatever runs the tests may ignore SIGHUP, as nohup does, and what they start would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with running_host(tmp_path / "log") as host:
        yield host


@pytest.fixture
def hurried_host(tmp_path: Path) -> Iterator[Host]:
    with running_host(tmp_path / "log", limits={"shutdown_grace_seconds": GRACE_SECONDS}) as host:
        yield host


def terminate(host: Host) -> float:
    begun = time.monotonic()
    host.terminate()
    return begun


def seconds_to_exit(host: Host, begun: float) -> float:
    """Wait for an exit with status 0."""
    assert host.exit_status() == 0, host.log()
    return time.monotonic() - begun


def begin(host: Host, path: str) -> None:
    host.wait_until_told(request=path)


def request(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_host_ends_at_once(host: Host, number: int) -> None:
    with host.connect() as idle, host.connect() as silent:
        assert idle.get("/echo")[0] == 200
        host.terminate(number)
        begun = time.monotonic()
        # One that has been served is closed at once, one that is new may be about to ask.
        assert select.select([idle.socket, silent.socket], [], [], SOON_SECONDS)[0] == [idle.socket]
        assert idle.read_to_end() == b""
        assert silent.read_to_end() == b""
        assert seconds_to_exit(host, begun) < within(SOON_SECONDS)
    assert [told["hook"] for told in host.told if "hook" in told] == ["drain", "stop"]


def test_hangup_begins_the_end_and_does_not_hasten_it(host: Host) -> None:
    with host.connect() as client, host.connect() as other:
        client.send(request("/wait"))
        begin(host, "/wait")
        host.terminate(signal.SIGHUP)
        host.wait_until_told(hook="drain")
        host.terminate(signal.SIGHUP)
        assert other.get("/release") == (200, {"draining": True})
        assert client.answer() == (200, "released")
        assert host.exit_status() == 0
    assert host.told[-1] == {"hook": "stop"}


def test_hangup_that_is_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    ignoring = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    with running_host(tmp_path / "log", wrapper=ignoring) as host:
        host.get("/echo")
        host.terminate(signal.SIGHUP)
        assert host.get("/echo")[0] == 200
        assert not host.count(hook="drain")
        host.terminate()
        assert host.exit_status() == 0


def test_closed_terminal_ends_the_host_in_order(tmp_path: Path) -> None:
    terminal, its_own = os.openpty()
    with running_host(tmp_path / "log", terminal=its_own) as host:
        os.close(its_own)
        with host.connect() as client, host.connect() as other:
            client.send(request("/wait"))
            begin(host, "/wait")
            os.close(terminal)
            host.wait_until_told(hook="drain")
            assert other.get("/release") == (200, {"draining": True})
            assert client.answer() == (200, "released")
        assert host.exit_status() == 0
    assert host.told[-1] == {"hook": "stop"}


def test_call_in_flight_finishes_and_no_other_is_accepted(host: Host) -> None:
    with host.connect() as client, host.connect() as other:
        client.send(request("/wait"))
        begin(host, "/wait")
        begun = terminate(host)
        host.wait_until_told(hook="drain")
        with pytest.raises(ConnectionRefusedError):
            host.connect()
        # A connection that was there already may still ask, for half a second: health is asked like this.
        assert other.get("/release") == (200, {"draining": True})
        response = client.response()
        assert (response.status, response.read()) == (200, b'"released"')
        assert response.headers["connection"] == "close"
        assert seconds_to_exit(host, begun) < within(SOON_SECONDS)
    assert host.told[-1] == {"hook": "stop"}


def test_stream_is_told_to_end_and_ends_cleanly(host: Host) -> None:
    with host.connect() as client:
        client.send(request("/stream"))
        client.read_until(b"begun\n\r\n")
        begun = terminate(host)
        assert client.read_to_end() == b"4\r\nbye\n\r\n0\r\n\r\n"
        assert seconds_to_exit(host, begun) < within(SOON_SECONDS)


def test_bytes_on_their_way_are_sent_before_the_exit(host: Host) -> None:
    with host.connect() as client:
        client.send(request("/big?size=10000000"))
        host.wait_until_told(ended="/big")
        begun = terminate(host)
        host.wait_until_told(hook="drain")
        assert len(client.read_to_end()) > 10_000_000
        assert seconds_to_exit(host, begun) < within(SOON_SECONDS)


@pytest.mark.parametrize(
    "half",
    [b"GET /echo HT", b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nfive.", b""],
)
def test_half_sent_request_does_not_hold_up_the_exit(hurried_host: Host, half: bytes) -> None:
    host = hurried_host
    with host.connect() as client, host.connect() as running:
        client.send(half)
        running.send(request("/wait"))
        begin(host, "/wait")
        begun = terminate(host)
        # The application is cancelled all the same: in Daphne the half-sent request keeps it from that.
        assert statuses(running.read_to_end()) == [503]
        assert client.read_to_end() == b""
        assert GRACE_SECONDS <= seconds_to_exit(host, begun) < within(GRACE_SECONDS + 1)
    assert "Traceback" not in host.log()


def test_half_sent_request_alone_is_hardly_waited_for(host: Host) -> None:
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nfive.")
        host.get("/echo")
        assert seconds_to_exit(host, terminate(host)) < within(SOON_SECONDS)


def test_half_sent_request_that_arrives_is_answered(host: Host) -> None:
    with host.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nfive.")
        host.get("/echo")
        begun = terminate(host)
        host.wait_until_told(hook="drain")
        client.send(b"five.")
        assert statuses(client.read_to_end()) == [200]
        assert seconds_to_exit(host, begun) < within(SOON_SECONDS)


def test_client_in_the_queue_of_the_port_is_served(host: Host) -> None:
    host.get("/echo")
    host.process.send_signal(signal.SIGSTOP)
    with host.connect() as client:
        client.send(request("/echo"))
        host.terminate()
        host.process.send_signal(signal.SIGCONT)
        assert statuses(client.read_to_end()) == [200]
    assert host.exit_status() == 0


def test_what_is_left_after_the_grace_is_cancelled_and_runs_its_finally(hurried_host: Host) -> None:
    host = hurried_host
    with host.connect() as client:
        client.send(request("/wait"))
        begin(host, "/wait")
        begun = terminate(host)
        assert statuses(client.read_to_end()) == [503]
        assert GRACE_SECONDS <= seconds_to_exit(host, begun) < within(GRACE_SECONDS + 1)
    assert host.told[-1] == {"hook": "stop"}
    assert {"ended": "/wait"} in host.told


def test_application_that_swallows_cancellation_does_not_hold_up_the_exit(hurried_host: Host) -> None:
    host = hurried_host
    with host.connect() as client, host.connect() as other:
        client.send(request("/stubborn"))
        other.send(request("/wait"))
        begin(host, "/stubborn")
        begin(host, "/wait")
        assert GRACE_SECONDS <= seconds_to_exit(host, terminate(host)) < within(GRACE_SECONDS + 1)
    assert {"swallowed": True} in host.told
    assert {"ended": "/wait"} in host.told
    assert {"hook": "stop"} in host.told


def test_blocked_loop_does_not_hold_up_the_exit(hurried_host: Host) -> None:
    host = hurried_host
    with host.connect() as client:
        client.send(request("/block-loop"))
        host.wait_until_told(blocked=True)
        assert seconds_to_exit(host, terminate(host)) < within(GRACE_SECONDS + 1)


def test_blocked_thread_does_not_hold_up_the_exit(hurried_host: Host) -> None:
    host = hurried_host
    with host.connect() as client:
        client.send(request("/block-thread"))
        host.wait_until_told(blocked=True)
        assert seconds_to_exit(host, terminate(host)) < within(GRACE_SECONDS + 1)
    assert {"hook": "stop"} in host.told


def test_thread_that_outlives_its_request_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with running_host(tmp_path / "log", server={"application_close_timeout": 1}) as host:
        with host.connect() as client:
            client.send(request("/block-thread"))
            host.wait_until_told(blocked=True)
        host.wait_until_told(ended="/block-thread")
        # The grace is twenty seconds here, and nothing needs them.
        assert seconds_to_exit(host, terminate(host)) < within(SOON_SECONDS)


@pytest.mark.parametrize("path", ["/wait", "/block-loop", "/stubborn"])
def test_second_signal_ends_at_once(tmp_path: Path, path: str) -> None:
    with running_host(tmp_path / "log") as host, host.connect() as client:
        client.send(request(path))
        begin(host, path)
        host.terminate()
        if path != "/block-loop":
            host.wait_until_told(hook="drain")
        else:
            # Equal signals that are pending together are one: only a signal that was noticed can be followed.
            host.until(lambda: "SigPnd:\t0000000000000000" in Path(f"/proc/{host.process.pid}/status").read_text())
        begun = time.monotonic()
        host.terminate(signal.SIGINT)
        assert host.exit_status() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert time.monotonic() - begun < within(1)


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_call_that_holds_the_gil_does_not_hold_up_the_exit_and_is_named(hurried_host: Host, where: str) -> None:
    """No Python code runs any more, in any thread: not the signal's handler, and not the thread that waits for it."""
    host = hurried_host
    with host.connect() as client:
        client.send(request(f"/hold-gil?where={where}"))
        host.wait_until_told(blocked=True)
        host.until(lambda: not is_answering(host))
        assert seconds_to_end(host, terminate(host)) < GRACE_SECONDS + 2
    assert host.process.returncode == -signal.SIGABRT
    assert "in search_for_ever" in host.log()


@pytest.mark.parametrize("is_noticed", [False, True], ids=["frozen before", "frozen after the first"])
def test_second_signal_ends_a_frozen_host_at_once(host: Host, is_noticed: bool) -> None:
    with host.connect() as client:
        if not is_noticed:
            client.send(request("/hold-gil?where=thread"))
            host.wait_until_told(blocked=True)
            host.until(lambda: not is_answering(host))
            host.terminate()
        else:
            client.send(request("/hold-gil?where=thread")[:-2])
            host.get("/echo")
            host.terminate()
            host.wait_until_told(hook="drain")
            client.send(b"\r\n")
            host.wait_until_told(blocked=True)
        begun = time.monotonic()
        host.terminate(signal.SIGINT)
        assert seconds_to_end(host, begun) < SOON_SECONDS


def test_call_that_holds_the_gil_while_the_host_stops_does_not_hold_up_the_exit(hurried_host: Host) -> None:
    host = hurried_host
    with host.connect() as waiting, host.connect() as client:
        waiting.send(request("/wait"))
        begin(host, "/wait")
        client.send(b"GET /hold-gil?where=thread HTTP/1.1\r\nHost: h\r\n")
        host.get("/echo")
        begun = terminate(host)
        host.wait_until_told(hook="drain")
        client.send(b"\r\n")
        assert seconds_to_end(host, begun) < GRACE_SECONDS + 2
    assert "in search_for_ever" in host.log()


def is_answering(host: Host) -> bool:
    with host.connect() as client:
        client.socket.settimeout(0.3)
        client.send(request("/echo"))
        try:
            return bool(client.socket.recv(1))
        except TimeoutError:
            return False


def seconds_to_end(host: Host, begun: float) -> float:
    """Wait for an exit with any status."""
    host.exit_status()
    return time.monotonic() - begun


def test_frozen_host_that_is_the_first_process_of_a_container_ends_too(tmp_path: Path) -> None:
    """The kernel protects such a process from every signal that it has no handler for, SIGKILL included."""
    container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a PID namespace")
    limits = {"shutdown_grace_seconds": GRACE_SECONDS}
    with running_host(tmp_path / "log", wrapper=container, limits=limits) as host, host.connect() as client:
        client.send(request("/hold-gil?where=thread"))
        host.wait_until_told(blocked=True)
        host.until(lambda: not is_answering(host))
        (first,) = psutil.Process(host.process.pid).children()
        begun = time.monotonic()
        # From outside, as `docker stop` does.
        first.send_signal(signal.SIGTERM)
        assert seconds_to_end(host, begun) < GRACE_SECONDS + 2
    assert "in search_for_ever" in host.log()


def test_guard_ends_with_its_host(host: Host) -> None:
    host.get("/echo")
    (guard,) = psutil.Process(host.process.pid).children()
    assert "guard_process.py" in " ".join(guard.cmdline())
    assert guard.environ().keys() <= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LC_CTYPE"}
    host.process.kill()
    assert guard.wait(SOON_SECONDS) is None


def test_host_without_its_guard_goes_on(host: Host) -> None:
    host.get("/echo")
    (guard,) = psutil.Process(host.process.pid).children()
    guard.kill()
    assert host.get("/echo")[0] == 200
    assert seconds_to_exit(host, terminate(host)) < SOON_SECONDS
