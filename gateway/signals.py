"""Signals that announce what has happened in the gateway. Metrics, the recorder and session limits receive them.

Signals are sent with `send_robust`, most of them on the host's loop. A receiver must not block and should not fail.
"""

from django.dispatch import Signal

session_opened = Signal()
"""A session can be reached by its id. `session`: the `gateway.transports.sessions.Session`."""

session_closed = Signal()
"""A session has ended: its id answers 404 from now on. `session`."""

session_state_changed = Signal()
"""A session's client has told the server something that the session needs to go on elsewhere: it was initialized, chose
a log level, subscribed. Sent on the host's loop or in the server's lane. `session`."""

stream_opened = Signal()
"""An event stream is open to a client. `server_name`: str."""

stream_closed = Signal()
"""An event stream was closed. `server_name`: str."""

request_refused = Signal()
"""The host itself answered a request with an error. Sent in the context of the request, where it has one. `reason`: one
of `metrics.REFUSAL_REASONS`. `error`: the `gateway.exceptions.GatewayError`, where there is one."""

listing_learned = Signal()
"""A server has listed its tools, resources and prompts. Sent in the server's lane. `server_name`: str, `listing`: the
`gateway.instances.listings.Listing`."""
