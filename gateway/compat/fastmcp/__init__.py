"""Version 1's `mcp.server.fastmcp`: servers made with `FastMCP(…)` and `@mcp.tool()`.

Version 2 of the SDK has a successor, `MCPServer`. An alias for it would not do: it hides the texts of exceptions, runs
plain functions in threads without an event loop, checks URIs by other rules, and has another constructor and context.
So this is `FastMCP` again, on top of `CompatServer`, which already answers by version 1's rules and runs handlers on
the server's home loop. From version 2 it takes what is the same in both: how a function's signature becomes a schema,
how arguments and results are converted, and the models of tools, prompts and resources.

As on mcp 1.x, plain functions run on the event loop too. One that blocks blocks the home loop, not the lane.

Where this differs from mcp 1.28, on purpose (and in what `compat.server` lists):

1. A tool whose result is annotated as content (`TextContent`, `list[ImageContent]` …) has no output schema. Version 1
   sent such content twice: as content and as structured content.
2. `run()` does nothing: the host serves the object. Its apps (`sse_app()`) have only the author's own routes.
3. Authentication and transport settings are accepted and not used. The host has its own.

`modules` says under which names servers import all this.
"""
