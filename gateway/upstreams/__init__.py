"""Servers that are not Python code in this process: commands, remote URLs, and folders in a process of their own.

Each becomes a factory of low-level `Server` objects that pass on what they get to the command or remote server, which
this package calls "the other side". So instances, transports, limits and metrics treat them like any other server.

* `manifest`, `placeholders`: `server.json` and `mcpServers` entries, checked when they are loaded. `secrecy`: what of
  them is not shown.
* `launcher`, `child`: one process tree, its limits, and its end. `inherited`: what it gets of the host's environment.
  `pipes`: messages on its standard input and output.
* `remote`, `checked_transport`, `bounded_response`: one connection to a URL, to which addresses, and how much is read.
* `link`, `dispatcher`: the JSON-RPC conversation with either of them.
* `supply`: who uses which link, starts, restarts, back-off. `link_state`: what operators see of it.
* `relay`: the `Server` object that passes requests on. `questions`: what the other side asks the client.
* `isolation`: Python folders in a process of their own.

Imports `access` (for redaction), `http`, `tracing` and the ground. Imported by `catalog`, `alerts` and `management`.
"""
