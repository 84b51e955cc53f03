"""Manifests become definitions: a `server.json` in a server folder, and the entries of GUMCP_SERVERS_FILE.

Not here: what a manifest may say (`upstreams.manifest`), and what serves it (`upstreams.relay`).
"""

import time
from pathlib import Path
from typing import Any

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.styles import Style
from gateway.upstreams.manifest import MANIFEST_NAME, ManifestError, parse_manifest, read_json
from gateway.upstreams.slots import Slots


def has_manifest(folder: Path) -> bool:
    """Whether a server folder has a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def load_manifest(folder: Path, slots: Slots) -> ServerDefinition | LoadFailure:
    """Load the manifest of a server folder."""
    try:
        return load_entry(folder.name, folder, read_json(folder / MANIFEST_NAME), slots)
    except ManifestError as error:
        return LoadFailure(folder.name, folder, f"{MANIFEST_NAME}: {error}")


def load_entry(name: str, folder: Path, entry: Any, slots: Slots) -> ServerDefinition | LoadFailure:
    """Load one entry. Nothing is started."""
    # Only hosts that have a manifest pay for the SDK's client, which takes as long to import as all the rest.
    from gateway.upstreams.relay import relay_factory, relay_options
    from gateway.upstreams.supply import Supply

    started = time.perf_counter()
    try:
        manifest = parse_manifest(entry, folder)
    except ManifestError as error:
        return LoadFailure(name, folder, f"{MANIFEST_NAME}: {error}")
    supply = Supply(name, manifest, slots)
    style = Style(relay_factory(supply), relay_options, is_shared=False)
    return ServerDefinition(name, folder, style, time.perf_counter() - started, source=supply)
