"""The rule that decides when a client reads too slowly. Both our Daphne and event streams apply it."""


class SlowReaderRule:
    """Watches what waits for one client.

    Within `seconds` the client must take everything that waits for it, or `buffer_bytes` of it, whichever is less. Then
    its time begins again. So a client that reads steadily, however large the whole, is never slow.
    """

    __slots__ = ("_buffer_bytes", "_due_at", "_due_bytes", "_seconds")

    def __init__(self, seconds: float, buffer_bytes: int) -> None:
        self._seconds = seconds
        self._buffer_bytes = buffer_bytes
        self._due_at: float | None = None
        self._due_bytes = 0

    def is_broken(self, now: float, *, taken_bytes: int, waiting_bytes: int) -> bool:
        """Whether the client's time is up at `now` (monotonic seconds). To be asked now and then.

        `taken_bytes`: everything the client has taken so far.
        """
        if self._due_at is None or taken_bytes >= self._due_bytes:
            self._due_at = now + self._seconds
            # At least one: the mere end of a response may wait for a client too.
            self._due_bytes = taken_bytes + max(1, min(waiting_bytes, self._buffer_bytes))
            return False
        return now >= self._due_at

    def forget(self) -> None:
        """Start over: nothing waits for the client that must be taken in time."""
        self._due_at = None
