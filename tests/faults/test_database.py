"""A database that is locked, missing or broken: calls go on as always, rows catch up afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import statistics
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest

from tests.faults.figures import Record, milliseconds, size
from tests.support.deadlines import IS_EXACT, are_quick
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import SseStream

LOCK_SECONDS = size(3, 10)
"""How long the database is locked."""

ROW_SECONDS = 8.0
"""How soon rows have caught up: a writer may be in the middle of a wait for the lock, which takes 5 s at most."""


def latencies(stream: SseStream, seconds: float) -> list[float]:
    measured, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        stream.call("echo", text="x")
        measured.append(time.monotonic() - started)
        time.sleep(0.01)
    return measured


def test_calls_keep_their_latency_while_the_database_is_locked_and_rows_catch_up(
    host: HostProcess, record: Record
) -> None:
    with host.session("workshop", "steady:key") as stream:
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'steady'"))
        usual = latencies(stream, 1)
        with host.locked_database():
            started = time.monotonic()
            meanwhile = latencies(stream, LOCK_SECONDS - 0.5)
            with host.session("workshop", "opened-meanwhile:key") as other:
                assert other.call("echo", text="x") == "x"
            assert host.request("GET", "/health_check").status == 200
            calls = len(usual) + len(meanwhile)
            while time.monotonic() - started < LOCK_SECONDS:
                stream.call("echo", text="x")
                calls += 1
                time.sleep(0.01)
        record(f"locked for {LOCK_SECONDS} s", f"calls {milliseconds(meanwhile)}; before {milliseconds(usual)}")
        if IS_EXACT:
            assert statistics.median(meanwhile) < 3 * statistics.median(usual) + 0.005
        assert are_quick(meanwhile, 0.1)
        query = "SELECT calls FROM records_sessionrecord WHERE user_id = 'steady'"
        until(lambda: host.rows(query)[0]["calls"] == calls, ROW_SECONDS)
        closed = "SELECT state FROM records_sessionrecord WHERE user_id = 'opened-meanwhile'"
        until(lambda: host.rows(closed) == [{"state": "closed"}], ROW_SECONDS)


def test_host_without_tables_serves_and_writes_once_they_are_there(
    start_host: StartHost, tmp_path: Path, migrated_database: Path
) -> None:
    path = tmp_path / "data"
    path.mkdir()
    sqlite3.connect(path / "gumcp.sqlite3").close()
    with start_host(data_dir=path, health=503) as host, host.session("workshop", "early:key") as stream:
        assert stream.call("echo", text="x") == "x"
        assert "Run `manage.py migrate`" in host.log()
        assert host.request("GET", "/health_check").json["status"] == "not migrated"
        with (
            closing(sqlite3.connect(migrated_database)) as source,
            closing(sqlite3.connect(path / "gumcp.sqlite3")) as target,
        ):
            source.backup(target)
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'early'"), ROW_SECONDS)
        until(lambda: host.rows("SELECT * FROM records_serverrecord"), ROW_SECONDS)
        assert host.request("GET", "/health_check").status == 200
        assert host.log().count("Rows cannot be written") == host.log().count("manage.py migrate") == 1


def log_in(host: HostProcess) -> tuple[int, int]:
    """The status of the admin's login page, and of a try to log in, which is written down even if it fails."""
    page = host.request("GET", "/admin/login/")
    cookie = str(page.headers["Set-Cookie"]).partition(";")[0]
    form = {"username": "nobody", "password": "nothing", "csrfmiddlewaretoken": cookie.partition("=")[2]}
    headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    return page.status, host.request("POST", "/admin/login/", urlencode(form).encode(), headers).status


def what_works(host: HostProcess, record: Record, name: str) -> None:
    """Calls, new sessions and health go on; the report says what is wrong; the admin is what may fail."""
    with host.session("workshop", f"{name}:key") as stream:
        measured = latencies(stream, 1)
        until(lambda: host.request("GET", "/health_check?full=1").json["database"]["error"], 15)
        report = host.request("GET", "/health_check?full=1").json
        login_page, login = log_in(host)
        health = host.request("GET", "/health_check").status
        error = report["database"]["error"]
        record(
            name,
            f"calls {milliseconds(measured)}; health {health}; the report says {error}; "
            f"the admin's login page {login_page}, a login {login}",
        )
        assert are_quick(measured, 0.1)
        assert (report["status"], report["database"]["status"]) == ("degraded", "late")
        assert (login_page, login) == (200, 503)
        assert stream.call("echo", text="x") == "x"
    assert host.request("GET", "/health_check").json["status"] == "ok"


def test_full_disk_costs_rows_and_no_call(start_host: StartHost, record: Record) -> None:
    """Full for the database: the host's files may not grow beyond what its database has already."""
    with start_host(GUMCP_LOG_LEVEL="ERROR") as host:
        until(lambda: host.rows("SELECT * FROM records_serverrecord"))
        process = psutil.Process(host.pid)
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        largest = max(file.stat().st_size for file in host.data_dir.glob("log-*"))
        process.rlimit(resource.RLIMIT_FSIZE, (largest + 2048, hard))
        what_works(host, record, "full")
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'full'"), ROW_SECONDS)
        until(lambda: host.request("GET", "/health_check?full=1").json["database"]["status"] == "ok", ROW_SECONDS)


def test_read_only_database_costs_rows_and_no_call(start_host: StartHost, record: Record, tmp_path: Path) -> None:
    # Root may write to anything, unless it gives that up.
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be kept from writing")
        wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with start_host(data_dir=tmp_path):  # so that all files are there
        pass
    path = tmp_path / "gumcp.sqlite3"
    path.chmod(stat.S_IRUSR)
    with start_host(data_dir=tmp_path, wrapper=wrapper) as host:
        what_works(host, record, "read-only")
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'read-only'"), ROW_SECONDS)


def test_database_that_is_taken_away_costs_rows_and_no_call(
    start_host: StartHost, record: Record, migrated_database: Path
) -> None:
    with start_host() as host:
        until(lambda: host.rows("SELECT * FROM records_serverrecord"))
        for file in host.data_dir.glob("gumcp.sqlite3*"):
            file.unlink()
        what_works(host, record, "missing")
        shutil.copy(migrated_database, host.data_dir / "gumcp.sqlite3")
        until(lambda: host.rows("SELECT * FROM records_sessionrecord WHERE user_id = 'missing'"), ROW_SECONDS)
