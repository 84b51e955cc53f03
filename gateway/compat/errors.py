"""Errors of running version 1 handlers in threads."""


class HandlerThreadsError(RuntimeError):
    """A handler could not be run, or it ended in a way that a handler must not."""


class NoFreeThreadError(HandlerThreadsError):
    """Every thread of the server is taken. The call was refused without being started."""

    def __init__(self, name: str, *, limit: int, busy: int, stuck: int) -> None:
        reason = f"{busy} calls of server {name!r} are running (limit {limit})"
        if stuck:
            reason += f", {stuck} of them were given up but have not returned"
        super().__init__(f"{reason}; the call was not started, try again later")
        self.limit = limit
        self.busy = busy
        self.stuck = stuck


class HandlerThreadsClosedError(HandlerThreadsError):
    """The server's threads were closed, after a reload or at shutdown."""


class HandlerExitError(HandlerThreadsError):
    """A handler tried to end more than its own call: `SystemExit`, `KeyboardInterrupt`, a cancellation of its own."""


class HomeLoopLostError(HandlerThreadsError):
    """A call blocked the home loop for so long that the loop was replaced."""


class ForeignLoopError(HandlerThreadsError):
    """A call that ran beside the home loop used something that belongs to that loop."""
