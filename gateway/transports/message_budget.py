"""How much memory clients' messages may hold, and what servers send to them: of one key, of one address, of the host.

A client's message counts with its text and the decoded objects (`json_size`), from its arrival until its answer is
being sent. A large message of a server counts from when it is written as JSON until the client has taken it. The number
of messages is not limited here, since it says little: a hundred calls may hold 2 MiB or a gigabyte.
"""

import threading
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Final, Self

from gateway.access.identity import Identity
from gateway.exceptions import GatewayError, MessageBudgetFull, TooManyRequests
from gateway.http.addresses import counted_address
from gateway.json_size import least_bytes

REQUEST_SHARE: Final = 0.875
"""The part of each limit that requests may use. The rest is reserved for clients' answers to servers' questions.
Otherwise calls that wait for an answer could use up the memory that the answer needs."""

SMALL_OUTGOING_BYTES: Final = 16 * 1024
"""What a server sends counts only if it is larger. An answer that is not counts no more than its request did."""

RETRY_SECONDS: Final = 1
"""When a refused client should try again."""

KEY_FULL: Final = "The unanswered messages and unread answers of this key hold as much memory as they may."
ADDRESS_FULL: Final = "The unanswered messages and unread answers of this address hold as much memory as they may."
HOST_FULL: Final = "The host holds as many unanswered messages and unread answers as it may. Try again later."

WITHHELD: Final = (
    "The server's message was not sent: it is too large beside what this client has not read yet. Read that first, or "
    "ask for less at once."
)

NOTHING_HELD: Final = nullcontext[None]()
"""Takes the place of a message's memory in a `with` statement, if the message is not counted."""


class MessageBudget:
    """The memory that unanswered messages hold. Messages are counted on the host's loop and released on any thread."""

    def __init__(self, *, host_bytes: int, address_bytes: int, key_bytes: int) -> None:
        self._host_bytes = host_bytes
        self._address_bytes = address_bytes
        self._key_bytes = key_bytes
        # Above these the messages are looked at more closely.
        self._host_request_bytes = host_bytes * REQUEST_SHARE
        self._address_request_bytes = address_bytes * REQUEST_SHARE
        self._key_request_bytes = key_bytes * REQUEST_SHARE
        self.held_bytes = 0
        """How much all unanswered messages hold."""
        self._by_address: dict[str, int] = {}
        self._by_key: dict[str | None, int] = {}
        self._lock = threading.Lock()

    def hold(self, identity: Identity, address: str, size_bytes: int) -> "MessageMemory":
        """Count a message that holds `size_bytes`.

        Raises:
            TooManyRequests: the key or the address would hold more than it may.
            MessageBudgetFull: the host would.
        """
        memory = MessageMemory(self, _key_of(identity), counted_address(address))
        self.add(memory, size_bytes)
        return memory

    def add(self, memory: "MessageMemory", more_bytes: int) -> None:
        """Count `more_bytes` for a message. Raises what `hold` raises."""
        with self._lock:
            if not memory.holders:  # its client has left
                return
            size, of_key, of_address, of_host = self._sums_with(memory, more_bytes)
            if (
                of_key > self._key_request_bytes
                or of_address > self._address_request_bytes
                or of_host > self._host_request_bytes
            ):
                memory.refusal = self._look_closely(size, of_key, of_address, of_host)
            self._count(memory, more_bytes)

    def add_outgoing(self, memory: "MessageMemory", more_bytes: int) -> bool:
        """Count `more_bytes` of what a server sends. False if that would be more than may be held: then do not send it.

        As with clients' messages, one is always let in that nothing else is held beside.
        """
        with self._lock:
            if not memory.holders:  # its client has left
                return True
            if not self._has_room(memory, more_bytes):
                return False
            self._count(memory, more_bytes)
            memory.outgoing_bytes += more_bytes
            return True

    def has_room(self, memory: "MessageMemory", more_bytes: int) -> bool:
        """Whether `add_outgoing` would return True now. It counts nothing."""
        with self._lock:
            return not memory.holders or self._has_room(memory, more_bytes)

    def _has_room(self, memory: "MessageMemory", more_bytes: int) -> bool:
        size, of_key, of_address, of_host = self._sums_with(memory, more_bytes)
        # A batch has one memory for all its answers: the others of them are held beside this one.
        alone = size - memory.outgoing_bytes
        return not (
            (of_key > alone and of_key > self._key_request_bytes)
            or (of_address > alone and of_address > self._address_request_bytes)
            or (of_host > alone and of_host > self._host_request_bytes)
        )

    def hold_outgoing(self, identity: Identity, address: str, size_bytes: int) -> "MessageMemory | None":
        """Count what a server sends and what answers nothing. None if it must not be sent."""
        memory = MessageMemory(self, _key_of(identity), counted_address(address))
        return memory if self.add_outgoing(memory, size_bytes) else None

    def _sums_with(self, memory: "MessageMemory", more_bytes: int) -> tuple[int, int, int, int]:
        """What the message, its key, its address and the host hold, with so many bytes more."""
        key = memory.key
        return (
            memory.size_bytes + more_bytes,
            0 if key is None else self._by_key.get(key, 0) + more_bytes,
            self._by_address.get(memory.address, 0) + more_bytes,
            self.held_bytes + more_bytes,
        )

    def _count(self, memory: "MessageMemory", more_bytes: int) -> None:
        key, address = memory.key, memory.address
        memory.size_bytes += more_bytes
        self.held_bytes += more_bytes
        self._by_address[address] = self._by_address.get(address, 0) + more_bytes
        if key is not None:
            self._by_key[key] = self._by_key.get(key, 0) + more_bytes

    def _look_closely(self, size: int, of_key: int, of_address: int, of_host: int) -> GatewayError | None:
        """Why a request of `size` bytes is refused, if it is. Raises where no message would be let in."""
        for held, limit, text in (
            (of_key, self._key_bytes, KEY_FULL),
            (of_address, self._address_bytes, ADDRESS_FULL),
            (of_host, self._host_bytes, HOST_FULL),
        ):
            # A message is always accepted if nothing else is held: otherwise it could never be sent.
            if held > size and held > limit:
                # Raised without a variable: the traceback would refer to the variable, and this cycle would keep the
                # message in memory until the next garbage collection.
                raise _refusal(text)
            if held > size and held > limit * REQUEST_SHARE:
                return _refusal(text)
        return None

    def keep(self, memory: "MessageMemory") -> None:
        """Add a holder of `memory`, who releases it."""
        with self._lock:
            memory.holders += 1

    def release(self, memory: "MessageMemory") -> None:
        """Remove a holder of `memory`. After the last one, the memory is not counted any more."""
        with self._lock:
            memory.holders -= 1
            if memory.holders:
                return
            # If it was raised, its traceback refers to the memory, and so to the message.
            memory.refusal = None
            key, address, size = memory.key, memory.address, memory.size_bytes
            self.held_bytes -= size
            left = self._by_address[address] - size
            if left:
                self._by_address[address] = left
            else:
                del self._by_address[address]
            if key is not None:
                left = self._by_key[key] - size
                if left:
                    self._by_key[key] = left
                else:
                    del self._by_key[key]


def _key_of(identity: Identity) -> str | None:
    return None if identity.grant is None else identity.grant.public


def _refusal(text: str) -> GatewayError:
    return MessageBudgetFull(text) if text == HOST_FULL else TooManyRequests(text, RETRY_SECONDS)


class MessageMemory:
    """The memory of one message, or of one batch. It counts until every holder has released it.

    Whoever made it holds it inside a `with` block; whoever needs it longer calls `keep`.
    """

    __slots__ = ("_budget", "address", "holders", "key", "outgoing_bytes", "refusal", "size_bytes")

    def __init__(self, budget: MessageBudget, key: str | None, address: str) -> None:
        self._budget = budget
        self.key = key
        self.address = address
        self.size_bytes = 0
        self.outgoing_bytes = 0
        """How much of that a server sends."""
        self.holders = 1
        self.refusal: GatewayError | None = None
        """The error to raise if this message is a request. The memory that is left is reserved for answers."""

    def resize(self, size_bytes: int) -> None:
        """Count `size_bytes` from now on, which may be more than before. Raises what `MessageBudget.hold` raises."""
        if size_bytes > self.size_bytes:
            self._budget.add(self, size_bytes - self.size_bytes)

    def add_outgoing(self, more_bytes: int) -> bool:
        """Count an answer with its request. False if it must not be sent: see `MessageBudget.add_outgoing`."""
        return self._budget.add_outgoing(self, more_bytes)

    def has_room_for(self, result: dict[str, Any]) -> bool:
        """Whether an answer with this result may be sent, as far as that shows before it is written as JSON.

        To write 20 MB takes 20 ms, in which nothing else runs in this process.
        """
        size_bytes = least_bytes(result)
        return size_bytes <= SMALL_OUTGOING_BYTES or self._budget.has_room(self, size_bytes)

    def hold_outgoing(self, size_bytes: int) -> "MessageMemory | None":
        """Count for the same client what answers nothing. None if it must not be sent."""
        memory = MessageMemory(self._budget, self.key, self.address)
        return memory if self._budget.add_outgoing(memory, size_bytes) else None

    def keep(self) -> None:
        """Hold it, until `release`."""
        self._budget.keep(self)

    def release(self) -> None:
        """Stop holding it. Any thread."""
        self._budget.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.release(self)
