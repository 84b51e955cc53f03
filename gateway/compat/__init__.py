"""Servers written for version 1 of the MCP SDK, unchanged, on version 2.

* `imports`: one module's own `__import__`, whose views of `mcp.*` still have version 1's names. `detection`: which
  modules need it.
* `server`: version 2's low-level `Server` with version 1's decorators. `fastmcp`: version 1's `FastMCP` on top of it.
* `models`, `context`, `results`, `errors`: protocol models, requests, results and errors as version 1's code knows
  them.
* `handlers`, `handler_threads`, `loop_threads`, `blocking_jobs`, `cpu_watch`, `lifespans`: where and when handlers run.

Imports the MCP SDK and pydantic, nothing of Django or of this project: what it needs to know of its host, it is told.
Imported by `catalog` and `instances`.
"""
