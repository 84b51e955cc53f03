"""The gateway: MCP servers from folders, served to many users at once.

How a request travels: `application` (every ASGI server calls it) → `routing` → a door (`endpoints`, `consumers`) →
`instances` (one for each server and identity, alive in its server's `lanes` thread) → a transport (`transports`) → the
server's own code. Facts flow out: `sessions` → `signals` → `metrics`, `recorder` → `models` → `admin`.

* `discovery`, `styles`, `compat`, `registry`: folders become definitions; the shapes a module may have; version 1 of
  the SDK; what is served.
* `identity`, `access`: who is calling; keys, scopes, limits.
* `lanes`, `instances`, `generation`, `calls`, `policies`: event-loop threads; what lives in them; what calls may do.
* `transports`: HTTP+SSE, Streamable HTTP, the stateless protocol, and what they share.
* `endpoints`, `consumers`, `routing`, `application`: the doors.
* `serving`: our Daphne.
* `host`, `control`, `reloading`, `health`: what runs as long as the process; operators' commands; new code; its state.
* `sessions`, `metrics`, `recorder`, `models`, `admin`, `redaction`: what is open, and what is said about it.

Dependencies point one way: doors → instances → transports → sessions → registry → discovery.
"""
