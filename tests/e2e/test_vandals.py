"""Servers that change the process while they are loaded: the host starts, serves and stops as if none did."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.host_process import StartHost
from tests.support.server_folders import SOUND_SERVER

pytestmark = pytest.mark.e2e

VANDALS: Final = {
    "blocks-signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "ignores-signals": "import signal\nfor n in (1, 2, 15):\n    signal.signal(n, signal.SIG_IGN)",
    "sets-an-alarm": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_DFL)\nsignal.alarm(1)",
    "sets-a-time-bomb": "import faulthandler\nfaulthandler.dump_traceback_later(1, exit=True)",
    "forbids-recursion": "import sys\nsys.setrecursionlimit(120)",
    "replaces-hooks": "import os, sys, threading\n"
    "sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: os._exit(3)",
    "forbids-files": "import resource as r\nr.setrlimit(r.RLIMIT_NOFILE, (5, r.getrlimit(r.RLIMIT_NOFILE)[1]))",
    "forbids-time": "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (1, r.getrlimit(r.RLIMIT_CPU)[1]))",
    "closes-descriptors": "import os, sys\nsys.stdout.close()\nsys.stderr.close()\nos.close(1)\nos.close(2)",
    "goes-away": "import os\nos.chdir('/')\nos.umask(0o777)\nos.environ.clear()",
    "patches-python": "import asyncio, builtins, os, socket, sys, time\n"
    "asyncio.run = socket.socket = time.monotonic = builtins.open = sys.exit = os.dup2 = None",
    "is-impatient": "import socket\nsocket.setdefaulttimeout(0.0001)",
    "sets-its-loop": "import asyncio\nasyncio.set_event_loop(asyncio.new_event_loop())\nasyncio.run(asyncio.sleep(0))",
    "stays": "import threading\nthreading.Thread(target=threading.Event().wait).start()",
}


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_host_serves_and_stops_whatever_modules_have_changed_while_they_were_loaded(
    start_host: StartHost, tmp_path: Path, asgi_server: str
) -> None:
    server_dir = tmp_path / "servers"
    for name, source in VANDALS.items():
        (server_dir / name).mkdir(parents=True)
        (server_dir / name / "main.py").write_text(source + SOUND_SERVER.replace("\n    ", "\n"))
    # On leaving, the host has to end in time.
    with start_host(server_dirs=server_dir, asgi_server=asgi_server) as host:
        report = host.request("GET", "/health_check?full=1").json
        assert report["failed_servers"] == {}
        assert sorted(report["servers"]) == sorted(VANDALS)
        for name in VANDALS:
            with host.session(name, "ada:key") as stream:
                assert stream.request("ping", {})["result"] == {}
        # The alarm and the time bomb would have gone off by now.
        assert host.metric("gumcp_connection_total") == len(VANDALS)
        assert host.rows("SELECT count(*) AS rows FROM records_serverrecord") == [{"rows": len(VANDALS)}]
    assert "this was undone" in host.log()
