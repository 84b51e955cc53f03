"""Authentication: from a request's path and its Authorization header to the identity that is calling, or to a refusal.

Lives here: the order of the checks, and the limits of requests and of failures. Not here: what the request says
(`credentials`), which keys are good (`known_keys`), how many sessions may be open (`session_room`), scopes inside a
server (`tool_scope`).
"""

import hmac
import threading
import time
from hashlib import sha256
from typing import Final, Literal
from weakref import WeakValueDictionary

from gateway.access.credentials import NoKey, UnusableKey, authorization_header, read_credentials
from gateway.access.grants import Grant
from gateway.access.identity import Identity, parse_session_key
from gateway.access.keys import is_well_formed, key_digest
from gateway.access.known_keys import KnownKeys, Store, is_confirmed
from gateway.access.limits import RateLimits
from gateway.access.refusal_pacing import RefusalPacing
from gateway.exceptions import OutOfScope, TooManyRequests, Unauthenticated, UnknownKey
from gateway.http.addresses import counted_address, counted_site

Mode = Literal["open", "keys"]

MAX_KNOWN_CALLERS: Final = 10_000
"""How many ways of presenting a good key are remembered; beyond it the one that was added first is forgotten."""

_NOT_A_KEY: Final = "what was presented is not a key of this host, or is mistyped"


class Authenticator:
    """Knows who is calling.

    Threads: used on the host's loop, except the methods that say otherwise; `_lock` guards what they share.
    """

    def __init__(self, mode: Mode, store: Store, limits: RateLimits, *, hides_keys: bool = False) -> None:
        """`hides_keys`: servers get None in place of a key."""
        self.mode: Mode = mode
        self.limits = limits
        self._keys = KnownKeys(store, limits)
        self._hides_keys = hides_keys
        self._callers: dict[bytes, Identity] = {}
        """Digest of what was presented -> who that is. Not the text: one key can be written in many, long ways."""
        self._open_callers: WeakValueDictionary[str, Identity] = WeakValueDictionary()
        """Open mode: session key -> whose it is, as long as something of theirs is in memory."""
        self._lock = threading.Lock()
        self._pacing = RefusalPacing()

    @property
    def checks_keys(self) -> bool:
        """Whether a caller needs a key."""
        return self.mode == "keys"

    async def identify(
        self, headers: list[tuple[bytes, bytes]], address: str, server_name: str, session_key: str | None
    ) -> Identity:
        """Find out who is calling `server_name`.

        `session_key` is the URL's segment as it was written, None for the URL without one.

        Raises:
            InvalidSessionKey: open mode; the segment names no user.
            Unauthenticated: there is no valid key, or it is not this user's.
            OutOfScope: the key is not for this server.
            TooManyRequests: the key or the address has used up a limit.
            AuthenticationUnavailable: the key could not be checked.
        """
        if self.mode == "open":
            return self._open_caller(session_key or "")
        authorization = authorization_header(headers)
        presented = _digest(session_key, authorization)
        identity = self._callers.get(presented)
        if identity is None or not _holds(identity):
            identity = await self._check(session_key, authorization, address, presented)
        grant = identity.grant
        assert grant is not None
        grant.last_used = time.time()
        # Only requests with a good key are counted here: bad ones of a neighbour use up nothing of theirs.
        await self._spend_request(grant, address)
        if not grant.allows_server(server_name):
            raise OutOfScope("This key is not for this server.", user_id=identity.user_id, key=grant.public)
        return identity

    async def count_requests(self, identity: Identity, address: str, count: int) -> None:
        """Count more requests of a caller who is known: the messages of a batch.

        Raises:
            TooManyRequests: the key or the address has used up a limit.
        """
        if identity.grant is not None:
            for _ in range(count):
                await self._spend_request(identity.grant, address)

    async def identify_key(self, headers: list[tuple[bytes, bytes]], address: str) -> Identity:
        """Find out whose key is in the Authorization header, whatever server it is for, where keys are checked.

        Raises:
            Unauthenticated, TooManyRequests, AuthenticationUnavailable
        """
        authorization = authorization_header(headers)
        identity = await self._check(None, authorization, address, _digest(None, authorization))
        if identity.grant is not None:
            identity.grant.last_used = time.time()
        return identity

    async def identify_for_operator(self, public: str, server_name: str) -> Identity:
        """The owner of a key, for an operator who acts as that user on `server_name`. The key's permissions apply.

        The host does not have the key itself, so servers get none. Check first that the operator may do this.

        Raises:
            UnknownKey: there is no valid key with this public part.
            OutOfScope: the key is not for this server.
            AuthenticationUnavailable: the key's row cannot be read.
        """
        grant = await self._keys.find(public)
        if grant is None:
            raise UnknownKey("This key does not exist, or is no longer valid.")
        if not grant.allows_server(server_name):
            raise OutOfScope("This key is not for this server.", user_id=grant.facts.user_id, key=grant.public)
        return Identity(grant.facts.user_id, None, grant, grant.facts.digest)

    def grants_in_use(self, seconds: float) -> list[Grant]:
        """The grants that were used in the last `seconds` or have something open. May be called from any thread."""
        return self._keys.grants_in_use(seconds)

    def forget_unused(self) -> None:
        """Forget keys that were revoked or not used for long. May be called from any thread."""
        self._keys.forget_unused()
        with self._lock:
            for presented, identity in list(self._callers.items()):
                if identity.grant is None or not self._keys.is_kept(identity.grant):
                    del self._callers[presented]

    def close(self) -> None:
        """Let the threads end."""
        self._keys.close()
        self.limits.close()

    def _open_caller(self, session_key: str) -> Identity:
        identity = self._open_callers.get(session_key)
        if identity is None:
            identity = self._open_callers[session_key] = parse_session_key(session_key)
        return identity

    async def _check(
        self, session_key: str | None, authorization: bytes | None, address: str, presented: bytes
    ) -> Identity:
        """Check what is presented, and remember its digest if it is good."""
        try:
            credentials = read_credentials(session_key, authorization)
        except NoKey:
            # Not a failure: clients send such requests, also to other paths, before they know that they need a key.
            raise Unauthenticated("no key was presented") from None
        except UnusableKey:
            raise await self._refusal(address, Unauthenticated(_NOT_A_KEY)) from None
        grant = await self._find(credentials.key, address)
        if grant is None:
            note = "there is no such key" if is_well_formed(credentials.key) else _NOT_A_KEY
            raise await self._refusal(address, Unauthenticated(note))
        user_id = grant.facts.user_id
        is_owner = credentials.user_id is None or hmac.compare_digest(credentials.user_id.encode(), user_id.encode())
        # `&` instead of `and`: the same work whatever was wrong.
        if not (is_owner & grant.is_valid):
            note = grant.why_invalid or "the user in the URL is not the owner of the key"
            raise await self._refusal(address, Unauthenticated(note, user_id=user_id, key=grant.public))
        api_key = None if self._hides_keys else credentials.key
        identity = Identity(user_id, api_key, grant, key_digest(credentials.key))
        with self._lock:
            if len(self._callers) >= MAX_KNOWN_CALLERS and presented not in self._callers:
                del self._callers[next(iter(self._callers))]
            self._callers[presented] = identity
        return identity

    async def _find(self, key: str, address: str) -> Grant | None:
        if not is_well_formed(key):
            return None
        digest = key_digest(key)
        grant = self._keys.get(digest)
        if grant is not None and is_confirmed(grant):
            return grant
        if grant is None and (seconds := self.limits.is_spent_for_address("failed keys", address)) is not None:
            # Guesses cost no look-ups. A caller whose key is known is not shut out by a neighbour's failures.
            raise await self._paced(address, seconds)
        return await self._keys.look_up(key, digest)

    async def _refusal(self, address: str, refusal: Unauthenticated) -> Unauthenticated | TooManyRequests:
        """Count a key that was presented and is not good. Returns `refusal`, or another one after too many of them."""
        seconds = await self.limits.spend_for_address("failed keys", address)
        if seconds is None:
            return refusal
        paced = await self._paced(address, seconds)
        paced.user_id, paced.key = refusal.user_id, refusal.key
        paced.note_for_operators += f"; {refusal.note_for_operators}"
        return paced

    async def _paced(self, address: str, seconds: int) -> TooManyRequests:
        # A site shares its pace: it may call from any of its networks.
        await self._pacing.wait(counted_site(address) or counted_address(address))
        note = "too many wrong keys from this address"
        return TooManyRequests("Too many requests with keys that are not valid.", seconds, note)

    async def _spend_request(self, grant: Grant, address: str) -> None:
        subject, key = counted_address(address), grant.public
        if not self.limits.spend_at_once("requests of an address", subject):
            await self._spend("requests of an address", subject, grant)
        if not self.limits.spend_at_once("requests of a key", key):
            await self._spend("requests of a key", key, grant)

    async def _spend(
        self, rule: Literal["requests of a key", "requests of an address"], subject: str, grant: Grant
    ) -> None:
        seconds = await self.limits.spend(rule, subject)
        if seconds is not None:
            refusal = TooManyRequests("Too many requests.", seconds, f"the limit of {rule} is used up")
            refusal.user_id, refusal.key = grant.facts.user_id, grant.public
            raise refusal


def _digest(session_key: str | None, authorization: bytes | None) -> bytes:
    """What a request presents, as a digest. Neither part can contain the byte that stands between them."""
    path = b"\n" if session_key is None else session_key.encode("utf-8", "surrogatepass")
    return sha256(path if authorization is None else path + b"\n" + authorization).digest()


def _holds(identity: Identity) -> bool:
    """Whether a remembered caller may still call, by what is known in memory."""
    grant = identity.grant
    return grant is not None and is_confirmed(grant) and grant.is_valid and grant.facts.user_id == identity.user_id
