"""The balancers' configurations in docs/balancers, as far as their programs are here. nginx's runs in `test_nodes`."""

import shutil
import subprocess

import pytest

from tests.support.processes import ROOT

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(HAPROXY is None, reason="NOT TESTED: haproxy is not installed: apt-get install haproxy")
def test_haproxy_takes_its_configuration() -> None:
    assert HAPROXY is not None
    command = [HAPROXY, "-c", "-f", str(ROOT / "docs" / "balancers" / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
