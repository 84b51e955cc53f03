"""Session ids that only the caller who got them can use, and the digests that stand for them in rows.

An id is random, and it ends in a tag: a MAC over the random part, the server and the caller. So a process that has
never seen a session can tell without a look-up that an id is forged, or that it is somebody else's. The keys come from
Django's secret key, and the fallbacks of that key are accepted too.

Not here: the sessions (`gateway.transports.sessions`), their rows (`gateway.records.restorable_rows`).
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Self
from uuid import uuid4

from django.conf import settings
from django.utils.crypto import salted_hmac

from gateway.access.identity import Identity

_RANDOM_LENGTH: Final = 32
_TAG_LENGTH: Final = 32
"""Hexadecimal digits."""


class SessionIds:
    """Makes and checks session ids. May be used in any thread."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """The first secret makes ids and digests; all of them are accepted."""
        self._keys = [
            salted_hmac("gumcp.session-id", "v1", secret=secret, algorithm="sha256").digest() for secret in secrets
        ]

    @classmethod
    def of_settings(cls) -> Self:
        """Those of Django's secret key."""
        return cls(list(dict.fromkeys(map(str, [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]))))

    def new(self, server_name: str, identity: Identity) -> str:
        """A new id for a session of `identity`."""
        random = uuid4().hex
        return random + _tag(self._keys[0], random, server_name, identity)

    def is_genuine(self, session_id: str, server_name: str, identity: Identity) -> bool:
        """Whether the id was made for this caller on this server."""
        if len(session_id) != _RANDOM_LENGTH + _TAG_LENGTH or not session_id.isascii():
            return False
        random, tag = session_id[:_RANDOM_LENGTH], session_id[_RANDOM_LENGTH:]
        return any(hmac.compare_digest(_tag(key, random, server_name, identity), tag) for key in self._keys)

    def id_digests(self, session_id: str) -> list[str]:
        """What stands for the id in rows; the first one is written, all of them are looked up."""
        return [_mac(key, "id", session_id.encode()) for key in self._keys]

    def caller_digests(self, server_name: str, identity: Identity, agent: str) -> list[str]:
        """The same for a server and its caller. `agent` tells the programs of one caller apart."""
        return [_mac(key, "caller", *_caller(server_name, identity), agent.encode()) for key in self._keys]


def _tag(key: bytes, random: str, server_name: str, identity: Identity) -> str:
    return _mac(key, "tag", random.encode(), *_caller(server_name, identity))[:_TAG_LENGTH]


def _caller(server_name: str, identity: Identity) -> tuple[bytes, bytes, bytes]:
    # Where keys are checked, the digest stands for the key, also if its text is hidden from servers.
    key = identity.key_digest or (identity.api_key or "").encode("utf-8", "surrogatepass")
    return server_name.encode(), identity.user_id.encode("utf-8", "surrogatepass"), key


def _mac(key: bytes, purpose: str, *parts: bytes) -> str:
    # With their lengths, so that no two lists of parts are written alike.
    text = b"".join(b"%d:%b" % (len(part), part) for part in (purpose.encode(), *parts))
    return hmac.digest(key, text, sha256).hex()
