"""Finding and loading servers: folders -> definitions and failures.

Lives here: which folders count, how a module is executed, what is wrong with one. Not here: which of them are being
served (`registry`), and what their factories make (`instances`).
"""

import importlib.util
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Final

logger = logging.getLogger(__name__)

RESERVED_NAMES: Final = frozenset(
    {"admin", "health_check", "metrics", "static", "messages", "favicon.ico", "robots.txt"}
)
"""First path segments that the host answers itself."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

Factory = Callable[..., Any]
"""`(user_id, api_key) -> mcp.server.Server`"""


@dataclass(frozen=True, slots=True)
class ServerDefinition:
    """One server folder that loaded."""

    name: str
    """The folder's name, and the first segment of the server's URLs."""
    folder: Path
    factory: Factory
    get_initialization_options: Callable[[Any], Any]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """One server folder that cannot be served, and why."""

    name: str
    folder: Path
    reason: str
    """One sentence for the operator."""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found: every server folder is in exactly one of the two lists."""

    definitions: list[ServerDefinition] = field(default_factory=list)
    failures: list[LoadFailure] = field(default_factory=list)


def discover(server_dirs: list[Path]) -> Discovery:
    """Load every folder with a `main.py` in `server_dirs`: the directories in order, the folders by name.

    Nothing that a module does or raises stops the others; `sys.path` and the root logger are put back after each.
    """
    found = Discovery()
    taken: dict[str, Path] = {}
    for server_dir in server_dirs:
        if not server_dir.is_dir():
            logger.warning("Server directory %s does not exist", server_dir)
            continue
        for folder in sorted(path for path in server_dir.iterdir() if (path / "main.py").is_file()):
            outcome = _load(folder, taken)
            if isinstance(outcome, LoadFailure):
                found.failures.append(outcome)
                logger.warning("Could not load server %s: %s", outcome.name, outcome.reason)
            else:
                taken[outcome.name] = folder
                found.definitions.append(outcome)
                logger.info("Loaded server: %s", outcome.name)
    logger.info("Discovered %d servers", len(found.definitions))
    return found


def _load(folder: Path, taken: dict[str, Path]) -> ServerDefinition | LoadFailure:
    name = folder.name
    if name in RESERVED_NAMES:
        return LoadFailure(name, folder, f"The name {name} is reserved for the host's own pages. Rename the folder.")
    if not _NAME.fullmatch(name):
        return LoadFailure(name, folder, "The folder's name may have letters, digits, and . _ - after the first.")
    if name in taken:
        return LoadFailure(name, folder, f"The name {name} is taken by {taken[name]}. Rename one of the folders.")

    started = time.perf_counter()
    try:
        with _restored_process_state():
            module = _execute(folder)
    # Foreign code: SystemExit and the like included, it may cost this server and no other.
    except BaseException as error:
        reason = f"main.py raised {type(error).__name__} when it was loaded: {error}".rstrip(": ")
        return LoadFailure(name, folder, reason, "".join(traceback.format_exception(error)))

    for attribute in ("server", "get_initialization_options"):
        if not callable(getattr(module, attribute, None)):
            return LoadFailure(name, folder, f"main.py has no function {attribute}.")
    seconds = time.perf_counter() - started
    return ServerDefinition(name, folder, module.server, module.get_initialization_options, seconds)


def _execute(folder: Path) -> ModuleType:
    """Execute the folder's `main.py` as a package of a unique name, so that `from . import …` finds its siblings."""
    path = folder / "main.py"
    digest = sha256(str(folder).encode()).hexdigest()[:12]
    unique_name = f"gumcp_server_{digest}_{re.sub(r'[^A-Za-z0-9]', '_', folder.name)}"
    spec = importlib.util.spec_from_file_location(unique_name, path, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(unique_name, None)
        raise
    return module


@contextmanager
def _restored_process_state() -> Iterator[None]:
    """Undo what modules commonly do to the process when they are imported: `sys.path`, standard output, logging."""
    path = list(sys.path)
    try:
        # What modules print would otherwise get into the protocol of `run_stdio` and the output of other commands.
        with redirect_stdout(sys.stderr), _restored_logging():
            yield
    finally:
        sys.path[:] = path


@contextmanager
def _restored_logging() -> Iterator[None]:
    """Put back every logger that exists already; those that are made inside the block stay as they are.

    All of them and not only the root's: `logging.config.dictConfig` disables loggers that it is not told of.
    """
    manager = logging.root.manager
    kept = [logging.root, *(found for found in manager.loggerDict.values() if isinstance(found, logging.Logger))]
    states = [
        (found, list(found.handlers), list(found.filters), found.level, found.disabled, found.propagate)
        for found in kept
    ]
    disabled_level, logger_class, record_factory = (
        manager.disable,
        logging.getLoggerClass(),
        logging.getLogRecordFactory(),
    )
    try:
        yield
    finally:
        for found, handlers, filters, level, is_disabled, propagate in states:
            found.handlers[:], found.filters[:] = handlers, filters
            found.disabled, found.propagate = is_disabled, propagate
            if found.level != level:
                found.setLevel(level)
        logging.disable(disabled_level)
        logging.setLoggerClass(logger_class)
        logging.setLogRecordFactory(record_factory)
