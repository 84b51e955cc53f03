"""Refuses processes to tests that have not asked for the fixture `processes`.

The fixture marks a test as `e2e`, and `make quick` leaves such tests out. So no test of the quick set can start a
process, neither by mistake nor through the code that it tests.
"""

from __future__ import annotations

from typing import Any, Final

STARTS: Final = frozenset({"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system", "os.startfile"})


class ProcessGuard:
    """An audit hook. Python cannot remove one, so it does nothing while no test is guarded."""

    def __init__(self) -> None:
        self.guarded_test: str | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS and self.guarded_test is not None:
            raise RuntimeError(f"{self.guarded_test} starts a process: let it use the fixture `processes`")
