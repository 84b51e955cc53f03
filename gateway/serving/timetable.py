"""When the parts of a shutdown happen, in seconds. docs/starting-and-stopping.md has the whole sequence.

The grace time (GUMCP_SHUTDOWN_GRACE_SECONDS) runs from the first signal. What an operator may rely on: the process is
gone two seconds after it, whatever its servers do.
"""

from typing import Final

DRAIN_ALLOWANCE_SECONDS: Final = 0.5
"""From the signal: how long a request may take to arrive that is on its way."""

PEER_ALLOWANCE_SECONDS: Final = 3.0
"""From the signal: how long idle connections of other machines stay open. These learn within a second or two that this
machine leaves, and close them. Until then a request may come on any of them."""

CANCELLATION_SECONDS: Final = 0.3
"""From the end of the grace time: how long cancelled requests may take to run their `finally`."""

SHUTDOWN_MARGIN_SECONDS: Final = 0.75
"""From the end of the grace time: when the watch ends the process by force. The host stops in the rest of it."""

FLUSH_SECONDS: Final = 0.1
"""How long log lines in memory may take to be written before that. A blocked main thread may hold their lock."""

FROZEN_MARGIN_SECONDS: Final = 0.5
"""From when the watch should have ended the process: when the means do so that need no GIL."""

EXIT_SECONDS: Final = 1.0
"""From the end of an orderly shutdown: how long Python may take to end. It joins the threads of executors, and one may
be blocked."""
