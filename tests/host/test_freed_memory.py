"""Memory that was freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import ROOT

PROGRAM = """
import psutil
from gateway.host.freed_memory import FreedMemory

FreedMemory().start()
process = psutil.Process()
before = process.memory_full_info().uss
for _ in range(3):
    blocks, between = [], []
    for _ in range(40):
        blocks.append(bytearray(4 * 2**20))
        between.append(bytearray(4000))
    del blocks
print((process.memory_full_info().uss - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another malloc")
@pytest.mark.usefixtures("processes")
def test_large_blocks_go_back_as_soon_as_they_are_freed() -> None:
    """Without that, 160 MiB stay: small blocks lie between them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 20
