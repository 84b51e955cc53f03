"""What the doctor finds: one line for each client and check, with a named cause if there is a fault."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Why a client cannot use the host."""

    BUFFERING = "a buffering proxy"
    REDIRECT = "a redirect"
    TEXT_NOT_FOUND = "a 404 that is not JSON"
    WRONG_URL = "a wrong public URL"
    WRONG_KEY = "a wrong key"
    NO_KEY = "no key"
    NOT_ALLOWED = "a key without permission"
    CERTIFICATE = "the certificate"
    UNREACHABLE = "an unreachable host"
    NO_SERVER = "a server that is not available"
    UNKNOWN_SERVER = "an unknown server"
    LOST_HEADER = "a lost header"
    COMPRESSION = "a compressed event stream"
    PREFLIGHT = "a refused preflight"
    UNEXPECTED = "an unexpected answer"


REMEDIES: Final = {
    Cause.BUFFERING: (
        "Something between client and host holds event streams back. Switch its buffering off for the host: "
        "`proxy_buffering off` in nginx (docs/nginx.conf), `flush_interval -1` in Caddy."
    ),
    Cause.REDIRECT: (
        "Clients do not repeat a POST at another address, or repeat it without its body. Give them the final address, "
        "and serve it without a redirect: https, and no slash added or removed."
    ),
    Cause.TEXT_NOT_FOUND: (
        "Clients read the bodies of 404 answers. Let the proxy pass on the host's own: remove error pages "
        "(`proxy_intercept_errors`, `error_page`) and catch-all rules."
    ),
    Cause.WRONG_URL: (
        "The host and this URL disagree about the host's address. Set GUMCP_PUBLIC_URL to the address that clients "
        "use, with its path if it has one, and let the proxy keep the Host header."
    ),
    Cause.WRONG_KEY: (
        "The key is mistyped, expired, revoked, or belongs to another user than the URL says. Make a new one with "
        "`manage.py create_key USER`."
    ),
    Cause.NO_KEY: "This host checks keys. Pass one with --key, or give the whole URL: URL/SERVER/USER:KEY.",
    Cause.NOT_ALLOWED: "Choose a server that the key is for with --server, or change the key's scope in the admin.",
    Cause.CERTIFICATE: (
        "Clients refuse this certificate. Serve one of a public authority, for this name, with all intermediate "
        "certificates."
    ),
    Cause.UNREACHABLE: "Check that the host runs, that the proxy points to it, and that a firewall lets clients in.",
    Cause.NO_SERVER: (
        "The host answers, and this server does not. Its page in the admin and the host's log say why; `manage.py call "
        "SERVER TOOL` shows it without a host."
    ),
    Cause.UNKNOWN_SERVER: (
        "Its name is misspelled, or it was not loaded (`manage.py list_servers` says why), or the key is not for it "
        "(its page in the admin says for which it is). Choose another one with --server."
    ),
    Cause.LOST_HEADER: "The proxy removes a header that MCP needs. Let it pass on all headers in both directions.",
    Cause.COMPRESSION: "Compression holds events back. Switch it off for text/event-stream.",
    Cause.PREFLIGHT: (
        "Web pages cannot call the host. Let the proxy pass on OPTIONS requests, and add the page's origin to "
        "GUMCP_ALLOWED_ORIGINS."
    ),
    Cause.UNEXPECTED: "Look into the host's log and the proxy's log of this moment.",
}
"""What to do about each cause."""


class Fault(Exception):
    """Something that a client trips over. The text says what the client sees; it never has a key in it."""

    def __init__(self, cause: Cause, seen: str) -> None:
        super().__init__(seen)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Finding:
    """What one client, or one check, saw."""

    subject: str
    seen: str
    cause: Cause | None = None
    """None: nothing is wrong."""
    is_skipped: bool = False

    @property
    def status(self) -> str:
        """ok, FAULT or skipped."""
        return "skipped" if self.is_skipped else "ok" if self.cause is None else "FAULT"
