"""Server objects that are alive: one instance for each server and identity, in the lane of its server.

A lane is a thread with an event loop. Every server has its own: a server that blocks its loop stops only itself.

* `instances`: which instances there are, who uses them, when they expire and how they move to new code.
* `instance`: one instance as the host sees it. `running_server`: the same as its lane sees it.
* `generation`: the `Server` object of one version of the code. `lifespan`: its lifespan.
* `calls`: what happens around every request: time limits (`call_clock`), limits on concurrent calls, metrics.
* `lanes`, `handler_threads`: where the code of servers runs.
* `policies`: the limits of each server. `listings`: the names of its tools, resources and prompts.
* `call_log`, `traffic`: what was called lately, and how often.

Imports `catalog`, `compat`, `access`, `tracing`, `http` and the ground. What is above it may import it. Not here: how
messages reach an instance (`transports`).
"""
