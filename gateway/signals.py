"""Facts that flow out of the gateway, named in the past participle. Metrics and the recorder receive them.

A receiver must not block and must not fail: signals are sent on the main event loop with `send_robust`.
"""

from django.dispatch import Signal

session_opened = Signal()
"""A session exists and is reachable. `session`: the `gateway.transports.sessions.Session`."""

session_closed = Signal()
"""A session has ended; its id answers 404 from now on. `session`."""

stream_opened = Signal()
"""An event stream is open to a client. `server_name`: str."""

stream_closed = Signal()
"""An event stream was closed. `server_name`: str."""

request_refused = Signal()
"""A request was answered with an error by the host itself. `reason`: one of `metrics.REFUSAL_REASONS`."""

listing_learned = Signal()
"""A server has listed its tools, resources and prompts. `server_name`: str, `listing`: the
`gateway.instances.listings.Listing`."""
