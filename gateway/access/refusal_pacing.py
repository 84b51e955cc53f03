"""Answers an address that has failed too often at a bounded rate, so that other callers get most of the event loop."""

import asyncio
import time
from typing import Final

REFUSALS_PER_SECOND: Final = 500
"""How many refusals one address gets in a second, as long as no more than `MAX_WAITING_REFUSALS` wait."""

MAX_WAITING_REFUSALS: Final = 250
"""How many refusals of one address have a slot of their own, half a second ahead at most: a neighbour behind the same
address may only have mistyped a key. The delay is capped: refusals beyond these wait for that half second and reserve
no slot. So a connection is answered at least twice a second; `GUMCP_MAX_CONNECTIONS_PER_ADDRESS` bounds how many
connections there are."""


class RefusalPacing:
    """The next free slot of each address. Used on the host's loop."""

    def __init__(self) -> None:
        self._next_slots: dict[str, float] = {}
        """Monotonic seconds. An address whose slot has passed need not be here."""

    async def wait(self, subject: str) -> None:
        """Wait for the slot of one refusal of this address."""
        now = time.monotonic()
        slot = max(now, self._next_slots.get(subject, now))
        longest = MAX_WAITING_REFUSALS / REFUSALS_PER_SECOND
        if slot - now < longest:
            # Moved to the end, so that the order stays close to that of the slots.
            self._next_slots.pop(subject, None)
            self._next_slots[subject] = slot + 1 / REFUSALS_PER_SECOND
            self._forget_passed(now)
        await asyncio.sleep(min(slot - now, longest))

    def _forget_passed(self, now: float) -> None:
        """Forget two passed slots at a time: constant work for each refusal, however many addresses there are."""
        for _ in range(2):
            subject = next(iter(self._next_slots), None)
            if subject is None or self._next_slots[subject] > now:
                return
            del self._next_slots[subject]
