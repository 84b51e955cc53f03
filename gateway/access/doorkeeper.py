"""Everything of access that lives as long as the host, made in one place. The host starts and stops it."""

from collections.abc import Callable
from typing import Any, Final

from gateway.access.authenticator import Authenticator
from gateway.access.grants import Grant
from gateway.access.key_watch import KeyWatch
from gateway.access.limits import RateLimits
from gateway.access.owned import OwnedSessions
from gateway.access.session_room import SessionRoom
from gateway.access.store import KeyStore
from gateway.conf import conf
from gateway.exceptions import NotOpenToNetwork
from gateway.http.listening import PERMISSION, is_local_request
from gateway.http.proxies import TrustedProxies

KEY_REVOKED: Final = "its key is no longer valid"
"""The end reason of sessions whose key was revoked or has expired, or whose user was disabled."""


class Doorkeeper:
    """Who may use the host, and for how long. Used on the host's loop, except the methods that say otherwise."""

    def __init__(self, sessions: OwnedSessions, call_soon: Callable[..., None]) -> None:
        """`call_soon` calls a function on the host's loop and may itself be called from any thread."""
        limits = RateLimits(conf.rate_limits, conf.limits_storage_url)
        store = KeyStore()
        self.authenticator = Authenticator(conf.auth_mode, store, limits, hides_keys=conf.hides_keys)
        self.session_room = SessionRoom(
            limits,
            of_host=conf.max_sessions,
            of_key=conf.max_sessions_per_key,
            of_address=conf.max_sessions_per_address,
        )
        self.proxies = TrustedProxies(conf.trusted_proxies)
        self._sessions = sessions
        self._is_local_only = conf.auth_mode == "open" and not conf.allows_network_without_keys
        self._watch = KeyWatch(self.authenticator, store, limits, lambda grants: call_soon(self._end_revoked, grants))

    def start(self) -> None:
        """Start to count sessions and to watch the keys. The watch writes refusals too, so it runs in both modes."""
        self.session_room.start()
        self._watch.start()

    def wake(self) -> None:
        """Read the keys' rows now."""
        self._watch.wake()

    def stop(self) -> None:
        """Write what is left and stop. Blocks for a moment: do not call it on an event loop."""
        self._watch.stop()
        self.session_room.stop()
        self.authenticator.close()

    def require_reachable(self, scope: Any) -> None:
        """Check that the host may answer on the address at which the request arrived.

        Raises:
            NotOpenToNetwork: without keys, only requests to this machine's own addresses are answered.
        """
        if self._is_local_only and not is_local_request(scope):
            raise NotOpenToNetwork(
                f"This host has no keys and answers local requests only. See GUMCP_AUTH and {PERMISSION}."
            )

    def _end_revoked(self, grants: list[Grant]) -> None:
        revoked = set(grants)
        for session in self._sessions:
            if session.identity.grant in revoked:
                session.end(KEY_REVOKED)
        for grant in grants:
            grant.close_all()
