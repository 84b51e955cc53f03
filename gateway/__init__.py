"""The gateway: MCP servers from folders, served to many users at once.

How a request travels: `application` (every ASGI server calls it) → `routing` → a door (`endpoints`, `consumers`) →
`instances` (one for each server and identity, alive in its server's `lanes` thread) → a transport (`transports`) → the
server's own code. Facts flow out: `sessions` → `signals` → `metrics`, `recorder` → `models` → `admin`.

* `discovery`, `process_state`, `styles`, `compat`, `registry`: folders become definitions; what an import must not
  change; the shapes a module may have; version 1 of the SDK; what is served.
* `identity`, `access`: who is calling; keys, scopes, limits.
* `lanes`, `instances`, `generation`, `calls`, `policies`: event-loop threads; what lives in them; what calls may do.
* `offers`, `tool_schemas`, `tool_results`: what a server and an instance have listed; what the host answers for a tool.
* `transports`: HTTP+SSE, Streamable HTTP, the stateless protocol, and what they share.
* `endpoints`, `consumers`, `routing`, `application`: the doors. `views`, `urls`: Django's pages.
* `serving`: our Daphne.
* `host`, `control`, `reloading`, `health`: what runs as long as the process; operators' commands; new code; its state.
* `sessions`, `signals`, `metrics`, `recorder`, `models`, `storable`, `admin`, `read_only_admin`: what is open, and what
  is said about it.
* `redaction`, `error_reports`, `exceptions`: what is not said about it; what can go wrong, named by meaning.
* `apps`, `conf`, `checks`, `management`: the Django app, its settings, what is unsafe about them, and its commands.

Dependencies point one way: doors → instances → transports → sessions → registry → discovery.
"""
