"""Signatures of requests that one node relays to another: who may say for which client a request is.

A signature is an HMAC over what the receiver believes: method, target, client address, scheme, the caller's key, the
time and a number that is used once. It is valid once, and only if the receiver's clock is within 30 seconds of its
time. The secret is derived from Django's secret key, which all nodes have in common.
"""

import hmac
import secrets
import time
from typing import Final

from gateway.exceptions import GatewayError

VALID_SECONDS: Final = 30.0
"""How far the clocks of two nodes may be apart."""

_PURPOSE: Final = b"gumcp requests between nodes"


class BadSignature(GatewayError):
    """A request on the peer port that no node of this fleet has sent now."""


class Signatures:
    """Makes and checks signatures. Used on one event loop."""

    def __init__(self, secret_key: str) -> None:
        """`secret_key`: Django's."""
        self._secret = hmac.digest(secret_key.encode(), _PURPOSE, "sha256")
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self._turn_at = 0.0

    def sign(self, *parts: bytes) -> bytes:
        """A signature of these parts, for one request."""
        stamp, nonce = b"%d" % time.time(), secrets.token_hex(16).encode()
        return b" ".join([stamp, nonce, self._mac(stamp, nonce, parts)])

    def check(self, signature: bytes, *parts: bytes) -> None:
        """Check a signature, but not whether it was used before.

        Raises:
            BadSignature: it is another's, or too old.
        """
        stamp, nonce, mac = self._split(signature)
        if not hmac.compare_digest(mac, self._mac(stamp, nonce, parts)):
            raise BadSignature("The signature does not belong to this request.")
        if abs(time.time() - int(stamp)) > VALID_SECONDS:
            raise BadSignature("The signature is too old, or the clocks of the nodes are too far apart.")

    def use(self, signature: bytes) -> None:
        """Note that a signature is used.

        Raises:
            BadSignature: it was used before.
        """
        _, nonce, _ = self._split(signature)
        now = time.monotonic()
        if now >= self._turn_at:
            # Two turns together are longer than a signature holds.
            self._turn_at = now + 2 * VALID_SECONDS
            self._seen_before, self._seen = self._seen, set()
        if nonce in self._seen or nonce in self._seen_before:
            raise BadSignature("The signature was used before.")
        self._seen.add(nonce)

    def _mac(self, stamp: bytes, nonce: bytes, parts: tuple[bytes, ...]) -> bytes:
        # Each part with its length: none can run into the next one.
        message = b"".join([b"%d:%b" % (len(part), part) for part in (stamp, nonce, *parts)])
        return hmac.digest(self._secret, message, "sha256").hex().encode()

    def _split(self, signature: bytes) -> tuple[bytes, bytes, bytes]:
        parts = signature.split(b" ")
        if len(parts) != 3 or not parts[0].isdigit() or len(parts[0]) > 12:
            raise BadSignature("The signature is malformed.")
        return parts[0], parts[1], parts[2]
