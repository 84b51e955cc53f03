"""The log keeps its descriptors when others close 1 and 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.usefixtures("processes")

SCRIPT = """
import logging, os, sys
logging.basicConfig(stream=sys.stderr, format="%(message)s")
early = sys.stdout
from gateway.serving.standard_streams import keep_standard_streams, log_descriptor
print("before")
keep_standard_streams()
keep_standard_streams()
os.closerange(0, 3)
# What a client's connection would be: the numbers are given out again.
taken = [os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(3)]
assert taken == [0, 1, 2], taken
print("after", file=early)
logging.error("logged")
os.write(log_descriptor(), b"written")
"""


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_log_goes_where_it_went_although_its_descriptors_were_closed(tmp_path: Path, unbuffered: list[str]) -> None:
    client = tmp_path / "client"
    done = subprocess.run(
        [sys.executable, *unbuffered, "-c", SCRIPT, str(client)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\nafter\n", "logged\nwritten")
    assert client.read_text() == ""


def test_process_without_standard_streams_goes_on(tmp_path: Path) -> None:
    script = SCRIPT.replace("os.closerange(0, 3)", "").partition("taken =")[0]
    closed = f"import os; os.closerange(0, 3); os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {script!r}])"
    done = subprocess.run([sys.executable, "-c", closed], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0
