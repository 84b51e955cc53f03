"""What `manage.py serve` prints once its port is open: what is served, where, and how a client connects."""

import json
from typing import TYPE_CHECKING, Final

from gateway.conf import conf
from gateway.conf.kinds import url_host
from gateway.management.shell import this_command

if TYPE_CHECKING:  # a supervisor does not import the SDK
    from gateway.catalog.registry import Registry

_EXAMPLE: Final = "simple-tools-server"
"""The bundled server that the printed configuration is for, if it is served."""


def next_steps(host: str, port: int, registry: "Registry | None", workers: int = 1) -> str:
    """Return the text. `registry` is None in a supervisor, which loads no servers: its workers log what they load."""
    here = f"http://{url_host(host)}:{port}"
    base = conf.base_url if conf.public_url else here
    names = [] if registry is None else registry.names
    name = _EXAMPLE if _EXAMPLE in names else names[0] if names else "SERVER"
    checks_keys = conf.auth_mode == "keys"
    url = f"{base}/{name}" if checks_keys else f"{base}/{name}/me"
    lines = ["", *_served(registry, workers), ""]
    lines += [f"  MCP endpoint  {url}", f"  admin         {base}/admin/", f"  health        {base}/health_check"]
    if conf.metrics_port:
        lines.append(f"  metrics       http://{url_host(conf.metrics_host)}:{conf.metrics_port}/metrics")
    if base != here:
        lines.append(f"  listens on    {here}")
    heading = "For your MCP client"
    if checks_keys:
        lines += ["", "Every call needs a key. Make one for a user:", ""]
        lines.append(f"    {this_command()} create_key USER")
        heading += ", with the key in the place of KEY"
    entry = {"url": url, **({"headers": {"Authorization": "Bearer KEY"}} if checks_keys else {})}
    client = json.dumps({"mcpServers": {name: entry}}, indent=2).replace("\n", "\n    ")
    return "\n".join([*lines, "", f"{heading}:", "", f"    {client}", "", "Stop with Ctrl-C.", ""])


def _served(registry: "Registry | None", workers: int) -> list[str]:
    if registry is None:
        return [f"guMCP serves with {workers} workers. Their log says which servers were loaded."]
    lines = [f"guMCP serves {len(registry)} servers: {', '.join(registry.names) or 'none'}"]
    not_served = [
        *(f"  {failure.name}: {failure.reason}" for failure in registry.failures),
        *(f"  {missed.name}: {missed.hint}" for missed in registry.near_misses),
    ]
    return [*lines, "", "Not served:", "", *not_served] if not_served else lines
