"""Servers written for version 1 of the MCP SDK, unchanged, on version 2.

`imports` gives one module an `__import__` of its own, whose views of `mcp.*` still have version 1's names;
`server` is version 2's low-level `Server` with version 1's decorators on top; `models` are the protocol models as
version 1's code knows them; `context` is what a handler sees of its request; `workers` runs handlers in threads.

The package needs the MCP SDK and pydantic, nothing of Django: what it knows of its host it is told.
"""
