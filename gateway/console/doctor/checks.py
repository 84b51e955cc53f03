"""What proxies are known to break, tried apart from any one client."""

import socket
import ssl
import time
from datetime import UTC, datetime
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gateway.console.doctor.clients import (
    Target,
    endpoint_url,
    look_for_oauth,
    refuse_redirect,
    request,
    require,
    require_stream,
)
from gateway.console.doctor.findings import Cause, Fault
from gateway.console.doctor.wire import Wire

DEFAULT_PORT: Final = 443

SECONDS_IN_A_DAY: Final = 86_400


def check_certificate(url: str, certificates: ssl.SSLContext, patience_seconds: float) -> str:
    """Check the host's certificate as clients do, and return how long it is valid.

    Raises:
        Fault
    """
    parts: SplitResult = urlsplit(url)
    address = (parts.hostname or "", parts.port or DEFAULT_PORT)
    try:
        with (
            socket.create_connection(address, patience_seconds) as connection,
            certificates.wrap_socket(connection, server_hostname=parts.hostname) as tls,
        ):
            certificate = tls.getpeercert() or {}
    except ssl.SSLError as error:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        raise Fault(Cause.CERTIFICATE, f"the certificate is refused: {reason}") from None
    except OSError as error:
        raise Fault(Cause.UNREACHABLE, f"no connection: {error.strerror or type(error).__name__}") from None
    ends_at = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = int((ends_at - time.time()) // SECONDS_IN_A_DAY)
    return f"valid until {datetime.fromtimestamp(ends_at, UTC):%Y-%m-%d} ({days} days)"


def check_not_found(wire: Wire, target: Target) -> str:
    """Check that the 404 answers that clients act on are the host's own.

    Raises:
        Fault
    """
    look_for_oauth(wire, target)
    headers = {**target.headers, "Mcp-Session-Id": "doctor-unknown-session"}
    answer = wire.ask("POST", target.url, headers=headers, message=request("tools/list"))
    refuse_redirect(wire, "POST with an unknown session id", answer)
    if answer.status != 404:
        require(wire, "POST with an unknown session id", answer)
    if answer.json is None:
        media_type = answer.content_type or "nothing"
        raise Fault(Cause.TEXT_NOT_FOUND, f"POST with an unknown session id answered 404 as {media_type}")
    return "OAuth metadata and unknown sessions are answered 404 as JSON"


def check_event_stream(wire: Wire, target: Target, silence_seconds: float) -> str:
    """Check that a stream's first event and its comments come when the host sends them.

    `silence_seconds`: the longest silence that clients accept; 0 waits for no comment.

    Raises:
        Fault
    """
    started = time.monotonic()
    try:
        with wire.listen(target.url, target.headers, silence_seconds) as stream:
            require_stream(wire, stream)
            cache_control = stream.headers.get("cache-control", "")
            if "no-store" not in cache_control and "no-cache" not in cache_control:
                raise Fault(Cause.LOST_HEADER, "the event stream has no Cache-Control: no-store")
            first = next(data for name, data in stream.frames() if name == "endpoint")
            first_after = time.monotonic() - started
            endpoint_url(wire, target, first)
            seen = f"first event after {first_after:.1f} s"
            if not silence_seconds:
                return seen
            started = time.monotonic()
            try:
                next(name for name, _ in stream.frames(silence_seconds) if name == "comment")
            except TimeoutError:
                text = f"{seen}, and then no comment within {silence_seconds:g} s"
                raise Fault(Cause.BUFFERING, text) from None
            return f"{seen}, comment after {time.monotonic() - started:.1f} s"
    except TimeoutError:
        raise Fault(Cause.BUFFERING, "the event stream's first event does not come") from None


def check_preflight(wire: Wire, target: Target, origin: str) -> str:
    """Ask, as a browser does, whether a page of `origin` may call the host.

    Raises:
        Fault
    """
    wanted = {"authorization", "content-type", "mcp-protocol-version", "mcp-session-id"}
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ", ".join(sorted(wanted)),
    }
    answer = wire.ask("OPTIONS", target.url, headers=headers)
    refuse_redirect(wire, "OPTIONS", answer)
    if answer.status not in (200, 204):
        raise Fault(Cause.PREFLIGHT, f"OPTIONS for {wire.shown(origin)} answered {answer.status}")
    if answer.headers.get("access-control-allow-origin") not in (origin, "*"):
        raise Fault(Cause.PREFLIGHT, f"OPTIONS does not allow the origin {wire.shown(origin)}")
    allowed = {name.strip().lower() for name in answer.headers.get("access-control-allow-headers", "").split(",")}
    if missing := wanted - allowed:
        raise Fault(Cause.PREFLIGHT, f"OPTIONS does not allow the headers {', '.join(sorted(missing))}")
    return f"pages of {wire.shown(origin)} may call"
