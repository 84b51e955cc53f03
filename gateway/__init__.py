"""The gateway: MCP servers from folders, served to many users at once.

How a request travels: an ASGI server calls `endpoints.application`, which passes it to `endpoints.routing` and from
there to the endpoint of its transport. The endpoint asks `access` who is calling, takes the caller's instance of the
server from `instances`, and hands the message to a transport in `transports`, which runs the server's own code in its
lane.

Facts flow out: `transports` sends `signals`, and `metrics` and `records` receive them. What operators want flows in:
through rows and `operator_commands`, which `host` carries out.

Packages, from the top down. A module imports from its own package and from those below it, never from one above; CI
enforces this (the contracts are in pyproject.toml).

* `management`: the commands of `manage.py`. `server_template`: the server that `startserver` copies. `isolated`: the
  program of a server folder that runs in a process of its own.
* `fleet`: several processes that serve as one host.
* `endpoints`: the application, its routing, the MCP endpoints, the playground's, health, and Django's
  pages.
* `console`: the admin's site: its overview, its pages of servers, users, keys and alerts, the playground, and the pages
  that help people to connect; and the doctor, which plays clients against a running host.
* `apps`: the Django app. It loads the servers when somebody asks for them.
* `host`: the running host. It makes what lives as long as the process, and starts and stops it.
* `alerts`: what operators are told by webhook and e-mail: when it begins and ends, to whom, and how it is sent.
* `records`: rows that operators see, who writes and reads them, and their admin pages.
* `transports`: sessions and how their messages travel: HTTP+SSE, Streamable HTTP, the stateless protocol.
* `instances`: one server object for each caller, and the lane (a thread with an event loop) that runs it.
* `catalog`: folders become server definitions.
* `upstreams`: servers that are commands, remote URLs, or folders in a process of their own.
* `access`: who is calling, and what their key allows.
* `compat`: servers written for version 1 of the MCP SDK. `serving`: our Daphne.
* `tracing`: OpenTelemetry spans of requests and messages.
* `http`: what all endpoints share: requests, responses, refusals, origins, proxies, addresses.

The ground, imported by many and importing little: `conf` (settings), `exceptions`, `signals`, `metrics`, `jsonrpc`,
`operator_commands`, `database_thread` and `bounded_jobs` (work that waits for the database), `private_sqlite`,
`tool_results`, `json_size`, `waiting`, `wakeups` (of event loops), `set_members`, `process_memory`, `collector` (of
garbage), `storable` (texts that databases take), `printable` (texts that people read), `read_only_admin`,
`admin_cells` (how values look in the admin).
"""

__version__ = "2.0.0"
