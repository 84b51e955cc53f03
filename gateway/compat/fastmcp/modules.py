"""The modules of version 1's `mcp.server.fastmcp`, by the names under which servers import them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any, Final

from mcp.server.mcpserver.utilities import context_injection, func_metadata, logging, types
from mcp_types import Icon

from gateway.compat.fastmcp import context, exceptions, prompts, resources, server, tools

ROOT: Final = "mcp.server.fastmcp"

_SOURCES: Final[Mapping[str, tuple[ModuleType, ...]]] = MappingProxyType(
    {
        "": (),
        "exceptions": (exceptions,),
        "prompts": (prompts,),
        "prompts.base": (prompts,),
        "prompts.manager": (prompts,),
        "resources": (resources,),
        "resources.base": (resources,),
        "resources.resource_manager": (resources,),
        "resources.templates": (resources,),
        "resources.types": (resources,),
        "server": (server, context),
        "tools": (tools,),
        "tools.base": (tools,),
        "tools.tool_manager": (tools,),
        "utilities": (),
        "utilities.context_injection": (context_injection,),
        "utilities.func_metadata": (func_metadata,),
        "utilities.logging": (logging,),
        "utilities.types": (types,),
    }
)
"""Where the names of each module come from."""


@cache
def fastmcp_module(name: str) -> ModuleType:
    """Return a module of version 1's FastMCP by its full name.

    Raises:
        ModuleNotFoundError: version 1 had no such module.
    """
    relative = name[len(ROOT) + 1 :]
    if relative not in _SOURCES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _FastMCPModule(name, _SOURCES[relative])


class _FastMCPModule(ModuleType):
    """One of these modules. Its submodules can be reached as attributes, as those of a package."""

    def __init__(self, name: str, sources: tuple[ModuleType, ...]) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        for source in sources:
            self.__dict__.update({key: value for key, value in vars(source).items() if not key.startswith("_")})
        if name == ROOT:
            self.__dict__.update(
                Audio=types.Audio, Context=context.Context, FastMCP=server.FastMCP, Icon=Icon, Image=types.Image
            )
            self.__all__ = ["FastMCP", "Context", "Image", "Audio", "Icon"]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and f"{self.__name__}.{name}"[len(ROOT) + 1 :] in _SOURCES:
            return fastmcp_module(f"{self.__name__}.{name}")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
