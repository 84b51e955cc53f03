"""The ring: every key has one owner, few keys move, and nginx agrees."""

import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from gateway.fleet.ring import Ring
from tests.support.processes import free_port, running
from tests.support.wire import exchange

KEYS = [f"server/{number}".encode() for number in range(1000)]


def test_every_member_owns_a_fair_share() -> None:
    ring = Ring(["0", "1", "2", "3"])
    counts = {member: sum(ring.owner(key) == member for key in KEYS) for member in ring.members}
    assert all(150 < count < 350 for count in counts.values()), counts


def test_only_the_keys_of_a_member_that_leaves_move() -> None:
    before, after = Ring(["a:1", "b:1", "c:1"]), Ring(["a:1", "b:1"])
    moved = [key for key in KEYS if before.owner(key) != after.owner(key)]
    assert all(before.owner(key) == "c:1" for key in moved)
    assert len(moved) == sum(before.owner(key) == "c:1" for key in KEYS)


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_finds_the_same_owner(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(4)]
    listen, members = ports[0], [f"127.0.0.1:{port}" for port in ports[1:]]
    servers = "".join(f"server {{ listen {member}; return 200 {member}; }}" for member in members)
    upstream = "".join(f"server {member};" for member in members)
    (tmp_path / "nginx.conf").write_text(
        textwrap.dedent(f"""
            daemon off; error_log stderr; pid {tmp_path}/pid;
            events {{}}
            http {{
                access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};
                fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};
                {servers}
                upstream owners {{ hash $arg_key consistent; {upstream} }}
                server {{ listen 127.0.0.1:{listen}; location / {{ proxy_pass http://owners; }} }}
            }}
        """)
    )
    ring = Ring(members)
    with running(
        ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        log=tmp_path / "log",
        is_ready=lambda: exchange(listen, "GET", "/").status == 200,
    ) as process:
        found = {number: exchange(listen, "GET", f"/?key=caller-{number}").body.decode() for number in range(100)}
        process.send_signal(subprocess.signal.SIGTERM)  # type: ignore[attr-defined]
    assert found == {number: ring.owner(f"caller-{number}".encode()) for number in range(100)}
