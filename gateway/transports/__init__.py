"""Sessions and how their messages travel between a client and a running server.

* `sessions`: the sessions that are open. `session_state`: what of one outlives its process.
* `sse`, `streamable_http`, `stateless`: the three transports, with the methods of `wire`. `link`, `dispatcher` and
  `message_loop`: the JSON-RPC conversation in the server's lane.
* `event_stream`, `event_buffer`, `shared_events`, `streams`: event streams, and what is kept to resume them.
* `reply`: one answer, as JSON or as a stream. `message_budget`, `message_reader`: how much memory messages may take.

Imports `instances`, `access`, `http` and the ground. Imported by `records`, `host`, `endpoints` and `fleet`. Not here:
which request goes to which transport (`endpoints`).
"""
