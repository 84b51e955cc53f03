"""Finds server folders and loads them: all of them for a host, or one by its name for a command.

Not here: how one folder is loaded (`loading`), and which servers are being served (`registry`).
"""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

from gateway.catalog.definitions import Discovery, LoadFailure, NearMiss, ServerDefinition
from gateway.catalog.import_effects import restored_process_state
from gateway.catalog.loading import Project
from gateway.catalog.manifests import entries_of, has_manifest
from gateway.catalog.near_misses import near_misses
from gateway.exceptions import UnknownServer

logger = logging.getLogger(__name__)


def discover(server_dirs: Sequence[Path], load_timeout_seconds: float = 0) -> Discovery:
    """Load every server folder in `server_dirs`: the directories in order, the folders by name.

    One of `server_dirs` may be an `mcpServers` file: each of its entries is treated like a folder.

    Nothing that a module raises stops the others, and side effects of its import are undone. Each load may
    take `load_timeout_seconds` (0: no limit); the limit works only in the main thread.
    """
    found = Discovery()
    taken: dict[str, Path] = {}
    for server_dir in server_dirs:
        if not server_dir.exists():
            logger.warning("Server directory %s does not exist", server_dir)
            continue
        project = Project(server_dir, load_timeout_seconds=load_timeout_seconds)
        for folder in server_folders(server_dir):
            with restored_process_state(folder.name):
                outcome = project.load(folder, taken)
            log_outcome(outcome)
            if isinstance(outcome, LoadFailure):
                found.failures.append(outcome)
            else:
                taken[outcome.name] = folder
                found.definitions.append(outcome)
        for near_miss in near_misses(server_dir):
            found.near_misses.append(near_miss)
            log_near_miss(near_miss)
    logger.info("Discovered %d servers", len(found.definitions))
    return found


def log_outcome(outcome: ServerDefinition | LoadFailure) -> None:
    """Log that a server was loaded, or why not and where."""
    if isinstance(outcome, ServerDefinition):
        logger.info("Loaded server: %s", outcome.name)
        if outcome.source is not None and (warning := outcome.source.warning()):
            logger.warning("Server %s cannot be used yet: %s", outcome.name, warning)
        return
    logger.warning("Could not load server %s: %s", outcome.name, outcome.reason)
    if outcome.traceback:
        logger.debug("Why server %s could not be loaded:\n%s", outcome.name, outcome.traceback.rstrip())


def log_near_miss(near_miss: NearMiss) -> None:
    """Log why a folder is not found as a server."""
    logger.warning("%s is not served: %s", near_miss.folder, near_miss.hint)


def load_server(
    name: str, server_dirs: Sequence[Path], load_timeout_seconds: float = 0
) -> ServerDefinition | LoadFailure:
    """Load the server called `name`, and no other, without a word in the log.

    It is the one that a host would serve: of several folders with this name the first that loads.

    Raises:
        UnknownServer: no folder has this name. The message lists the names that there are.
    """
    folders = [(folder, server_dir) for server_dir in server_dirs for folder in server_folders(server_dir)]
    failure: LoadFailure | None = None
    for folder, server_dir in folders:
        if folder.name == name:
            project = Project(server_dir, load_timeout_seconds=load_timeout_seconds)
            with restored_process_state(folder.name):
                outcome = project.load(folder, {})
            if isinstance(outcome, ServerDefinition):
                return outcome
            failure = failure or outcome
    if failure is None:
        for near_miss in (near_miss for server_dir in server_dirs for near_miss in near_misses(server_dir)):
            if near_miss.name in (name, f"{name}.py"):
                raise UnknownServer(f"{near_miss.folder} is not served: {near_miss.hint}")
        names = sorted({folder.name for folder, _ in folders})
        close = difflib.get_close_matches(name, names, n=1)
        question = f" Did you mean {close[0]}?" if close else ""
        raise UnknownServer(f"There is no server called {name}.{question} Servers: {', '.join(names) or 'none'}.")
    return failure


def server_folders(server_dir: Path) -> list[Path]:
    """The folders in `server_dir` that hold a server, by name; none if the directory cannot be read.

    The folders of an `mcpServers` file are its entries: paths below the file, which do not exist as such. A file that
    cannot be used is its own only folder, which fails to load.
    """
    if server_dir.is_file():
        return entries_of(server_dir)
    try:
        return sorted(path for path in server_dir.iterdir() if (path / "main.py").is_file() or has_manifest(path))
    except OSError:
        return []
