"""Shows authors the errors of their servers: the text, then the frames of their own code. Other frames are left out.

For commands on the author's own machine. A host that others use keeps the text of such errors out of its log
(`access.redaction`).
"""

import logging
import os
import re
import sys
import sysconfig
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import gateway

_FRAME: Final = re.compile(r'^  File "(?P<file>.+?)", line \d+, in .+\n(?:    .*\n)*', re.MULTILINE)
_CHAIN: Final = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n"
)
_LIBRARIES: Final = ("site-packages", "dist-packages")
_FOREIGN_FOLDERS: Final = (
    str(Path(gateway.__file__).parent) + os.sep,
    *(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")),
)
_SDK_WRAPPERS: Final = ("mcp.", "fastmcp.", "gateway.")
"""Modules whose exceptions only say that an author's code raised one, where they were raised from another."""


def describe_error(error: BaseException) -> str:
    """Return the text of an error and the frames of the author's code, most recent last."""
    return "\n\n".join(fold_traceback("".join(traceback.format_exception(leaf))) for leaf in leaves(error))


def fold_traceback(text: str) -> str:
    """Return a traceback that Python printed, with the message first and without the frames of libraries."""
    sections = [_Section(part) for part in _CHAIN.split(text.strip("\n") + "\n")]
    sections.reverse()  # the error itself first, then its cause
    shown = [section for section in sections if section.has_own_frames] or sections[:1]
    # A wrapper's message says less than what it wraps. Any other message is the author's, wherever it was raised.
    kept = [section for section in sections if section in shown or not section.is_wrapper]
    return "\nCaused by ".join(section.text() for section in kept)


class _Section:
    """One exception of a chain."""

    def __init__(self, text: str) -> None:
        frames = list(_FRAME.finditer(text))
        end = frames[-1].end() if frames else 0
        self.message = text[end:].removeprefix("Traceback (most recent call last):\n").strip("\n")
        self._frames = [(match["file"], match.group()) for match in frames]
        self._own = [text for file, text in self._frames if _is_own(file)]

    @property
    def has_own_frames(self) -> bool:
        return bool(self._own)

    @property
    def is_wrapper(self) -> bool:
        return not self._own and self.message.startswith(_SDK_WRAPPERS)

    def text(self) -> str:
        lines = [self.message, *(_short(frame) for frame in self._own)]
        if self._frames and _is_library(self._frames[-1][0]):
            lines.append("  raised in a library:\n" + _short(self._frames[-1][1]))
        left_out = len(self._frames) - len(self._own)
        if left_out:
            lines.append(f"  (frames of libraries that are left out: {left_out}; --traceback shows them)")
        return "\n".join(lines) + "\n"


def _is_own(file: str) -> bool:
    if file.startswith("<") or any(part in _LIBRARIES for part in Path(file).parts):
        return False
    return not file.startswith(_FOREIGN_FOLDERS)


def _is_library(file: str) -> bool:
    """Whether a file is a library's. The host's own code and Python's import machinery tell an author nothing."""
    return not (file.startswith(("<", _FOREIGN_FOLDERS[0])) or _is_own(file))


def _short(frame: str) -> str:
    return frame.rstrip("\n").replace(f'"{Path.cwd()}{os.sep}', '"', 1)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in a group of groups: the SDK's task groups wrap what failed inside of them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class AuthorHandler(logging.StreamHandler[Any]):
    """Writes log records to standard error for the author of a server: errors as `describe_error` does.

    The SDK and `gateway.compat` log what handlers raise, some of it twice or only at DEBUG. Each error is shown once,
    whatever its level.
    """

    def __init__(
        self,
        clean: Callable[[str], str],
        *,
        is_whole: bool = False,
        line: str = "{levelname} {name}: {message}",
        on_failure: Callable[[BaseException], object] | None = None,
    ) -> None:
        """`clean` takes out of a text what must not be printed even here. `is_whole`: print whole tracebacks.

        `on_failure` is called with an error of a handler, in place of writing it.
        """
        super().__init__(sys.stderr)
        self.setFormatter(_AuthorFormatter(clean, is_whole=is_whole, line=line))
        self._on_failure = on_failure
        self._shown: deque[BaseException] = deque(maxlen=10)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Write every record of the process inside the block, in place of the handlers that there are."""
        root, compat = logging.getLogger(), logging.getLogger("gateway.compat")
        handlers, level = list(root.handlers), compat.level
        self._least = root.level
        root.handlers[:] = [self]
        # It logs the errors of version 1 handlers at DEBUG.
        compat.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            compat.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or report the failure that it is about."""
        error = record.exc_info[1] if record.exc_info else None
        is_of_caller = record.name.partition(".")[0] in ("mcp", "fastmcp") or record.name.startswith("gateway.compat")
        if error is None or not is_of_caller:
            if record.levelno >= (logging.WARNING if is_of_caller else self._least):
                super().emit(record)
        elif not any(error is shown for shown in self._shown):
            self._shown.append(error)
            if self._on_failure is None:
                super().emit(record)
            else:
                self._on_failure(error)


class _AuthorFormatter(logging.Formatter):
    def __init__(self, clean: Callable[[str], str], *, is_whole: bool, line: str) -> None:
        super().__init__(line, style="{")
        self._clean = clean
        self._is_whole = is_whole

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            whole = "".join(traceback.format_exception(error))
            text = f"{text}\n{whole if self._is_whole else describe_error(error)}"
        return self._clean(text)
