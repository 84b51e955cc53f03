"""Manifests become definitions: a `server.json` in a server folder, and the entries of GUMCP_SERVERS_FILE.

Not here: what a manifest may say (`upstreams.manifest`), and what serves it (`upstreams.relay`).
"""

import time
from pathlib import Path
from typing import Any, Final

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.isolation_choices import isolation_choices
from gateway.catalog.styles import Style
from gateway.conf import conf
from gateway.upstreams.isolation import REQUIREMENTS, isolated_source
from gateway.upstreams.manifest import (
    MANIFEST_NAME,
    FolderOptions,
    Manifest,
    ManifestError,
    parse_folder_options,
    parse_manifest,
    read_json,
    read_servers_file,
)
from gateway.upstreams.slots import Slots

ENVIRONMENTS: Final = "environments"
"""The folder in GUMCP_DATA_DIR with the environments of isolated folders."""


def has_manifest(folder: Path) -> bool:
    """Whether a server folder has a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def is_entry(folder: Path) -> bool:
    """Whether a server folder is an entry of an `mcpServers` file, or such a file that cannot be read."""
    return folder.parent.is_file() or folder.is_file()


def entries_of(servers_file: Path) -> list[Path]:
    """The folders that an `mcpServers` file stands for: one below it for each entry, or itself if it cannot be read."""
    try:
        return [servers_file / name for name in sorted(read_servers_file(servers_file))]
    except ManifestError:
        return [servers_file]


def manifest_file(folder: Path) -> Path:
    """The file that a change of a server's manifest changes."""
    return folder if folder.is_file() else folder.parent if folder.parent.is_file() else folder / MANIFEST_NAME


def needs_environment(folder: Path) -> bool:
    """Whether a folder runs in a process with packages of its own.

    Raises:
        ManifestError: its manifest cannot be used.
    """
    if not (folder / "main.py").is_file() or not (folder / REQUIREMENTS).is_file():
        return False
    options = parse_folder_options(read_json(folder / MANIFEST_NAME) if has_manifest(folder) else {})
    return _is_isolated(folder, options) and options.uses_own_environment


def read_call_timeout(folder: Path) -> float | None:
    """The time limit for calls that the manifest beside a `main.py` sets, if it sets one."""
    return (
        parse_folder_options(read_json(folder / MANIFEST_NAME)).call_timeout_seconds if has_manifest(folder) else None
    )


def load_manifest(folder: Path, slots: Slots) -> ServerDefinition | LoadFailure | None:
    """Load a folder that is served by something else than its code in this process; None for one that is not.

    Nothing is started.
    """
    started = time.perf_counter()
    file = manifest_file(folder)
    try:
        if file != folder / MANIFEST_NAME:
            # An entry of a file. A file that cannot be read says why here.
            manifest: Manifest | None = parse_manifest(read_servers_file(file)[folder.name], file.parent)
        else:
            entry = read_json(file) if file.is_file() else {}
            has_code = (folder / "main.py").is_file()
            manifest = _folder_manifest(folder, entry) if has_code else parse_manifest(entry, folder)
    except ManifestError as error:
        return LoadFailure(folder.name, folder, f"{file.name}: {error}")
    except KeyError:
        return LoadFailure(folder.name, folder, f"{file.name} has no entry {folder.name} any more.")
    return None if manifest is None else _definition(folder.name, folder, manifest, slots, started)


def _folder_manifest(folder: Path, entry: Any) -> Manifest | None:
    options = parse_folder_options(entry)
    if not _is_isolated(folder, options):
        return None
    environments = Path(conf.data_dir) / ENVIRONMENTS
    source = isolated_source(
        folder, options.limits, options.env, environments, uses_own_environment=options.uses_own_environment
    )
    return Manifest(
        source, options.per, options.idle_seconds, options.start_timeout_seconds, options.call_timeout_seconds
    )


def _is_isolated(folder: Path, options: FolderOptions) -> bool:
    """Whether a folder runs in a process of its own: as an operator chose, else its manifest says, else the setting."""
    chosen = isolation_choices().get(folder.name)
    if chosen is None:
        chosen = options.isolates
    return conf.isolates_folders if chosen is None else chosen


def _definition(name: str, folder: Path, manifest: Manifest, slots: Slots, started: float) -> ServerDefinition:
    # Only hosts that have a manifest pay for the SDK's client, which takes as long to import as all the rest.
    from gateway.upstreams.relay import relay_factory, relay_options
    from gateway.upstreams.supply import Supply

    supply = Supply(name, manifest, slots)
    style = Style(relay_factory(supply), relay_options, is_shared=False)
    return ServerDefinition(name, folder, style, time.perf_counter() - started, supply, manifest.call_timeout_seconds)
