"""The kinds of server objects: the SDK's `Server` and `MCPServer`, `FastMCP` of version 1 of the SDK, and `FastMCP` of
the FastMCP package.
"""

import sys
from typing import Any, Final

from mcp.server import MCPServer, Server

from gateway.compat.fastmcp.server import FastMCP as Version1FastMCP

SERVER_KINDS: Final = "an mcp.server.Server, an MCPServer or a FastMCP"


def low_level_server(made: object) -> Server[Any] | None:
    """Return the low-level server of an object, or None if the object is not a server.

    Raises:
        TypeError: the installed SDK or FastMCP keeps the low-level server elsewhere than the versions we know.
    """
    if isinstance(made, Server):
        return made
    if isinstance(made, Version1FastMCP):
        return made._mcp_server
    if isinstance(made, MCPServer):
        # Private in mcp 2.3.0, which has nothing public for it; the SDK's own Client reads it too.
        inner, package = getattr(made, "_lowlevel_server", None), "mcp"
    elif is_fastmcp(made):
        # Private in fastmcp 4.1.2, which has nothing public for it either.
        inner, package = getattr(made, "_mcp_server", None), "fastmcp"
    else:
        return None
    if not isinstance(inner, Server):
        raise TypeError(f"This version of the package {package} keeps the server of a {type(made).__name__} elsewhere.")
    return inner


def is_fastmcp(made: object) -> bool:
    """Whether `made` is a FastMCP of the FastMCP package."""
    # Not imported: whoever made a FastMCP has imported this module, and for others it would cost a second and 40 MB.
    fastmcp = sys.modules.get("fastmcp.server.server")
    kind = getattr(fastmcp, "FastMCP", None)
    return isinstance(kind, type) and isinstance(made, kind)


def knows_its_version(made: object, server: Server[Any]) -> bool:
    """Whether an object can describe itself to clients without `get_initialization_options`.

    An MCPServer or a FastMCP always can: the SDK reports one without a version as unversioned.
    """
    return bool(server.version) or made is not server
