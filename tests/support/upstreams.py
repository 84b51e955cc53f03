"""Supplies and relays of a child that misbehaves on request, for tests without a host."""

import sys
from pathlib import Path
from typing import Any, Final

from gateway.upstreams.manifest import parse_manifest
from gateway.upstreams.relay import RelayServer, relay_factory
from gateway.upstreams.slots import Slots
from gateway.upstreams.supply import Supply

TALKING_CHILD: Final = Path(__file__).with_name("talking_child.py")


def make_supply(entry: dict[str, Any] | None = None, slots: Slots | None = None, **options: Any) -> Supply:
    """Make the supply of a manifest: the talking child, unless `entry` says otherwise. `options` go under `gumcp`."""
    entry = entry or {"command": sys.executable, "args": ["-S", str(TALKING_CHILD)]}
    if options:
        entry = {**entry, "gumcp": options}
    return Supply("fixture", parse_manifest(entry, Path.cwd()), slots or Slots())


async def make_relay(supply: Supply, user_id: str = "ada", api_key: str | None = None) -> RelayServer:
    """Make one caller's server object, as an instance does. Whoever serves it enters its lifespan."""
    return await relay_factory(supply)(user_id, api_key)
