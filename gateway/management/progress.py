"""Shows a call's progress on standard error: a bar on a terminal, else a line for each notification."""

import sys
from typing import Final, TextIO

_WIDTH: Final = 30


class Progress:
    """Draws what a server reports of one call."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._drawn = 0
        """How many characters of the line are on the terminal."""

    async def show(self, progress: float, total: float | None, message: str | None) -> None:
        """Show one notification."""
        share = min(1.0, max(0.0, progress / total)) if total else None
        count = f"{progress:g}/{total:g}" if total else f"{progress:g}"
        if not self._is_terminal:
            self._stream.write(f"progress {count}{f'  {message}' if message else ''}\n")
            return
        bar = "" if share is None else f"[{'#' * round(share * _WIDTH):{_WIDTH}}] {share:4.0%} "
        line = f"{bar}{count}{f'  {message}' if message else ''}".replace("\n", " ")[:118]
        self._stream.write(f"\r{line.ljust(self._drawn)}")
        self._stream.flush()
        self._drawn = len(line)

    def close(self) -> None:
        """End the line, so that what comes next has a line of its own."""
        if self._drawn:
            self._stream.write("\n")
            self._drawn = 0
