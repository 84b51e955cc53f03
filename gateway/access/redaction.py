"""Removes secrets from text before it is written down. Every log record, access line and error passes through here.

Removed are session keys and session ids in this host's URLs, keys that were issued here (their public part stays),
credentials in headers and queries, and the key of the caller whose request is being handled; each also where it is
percent-encoded. Not here: log records (`log_redaction`), Django's error pages and mails (`endpoints.error_reports`).
"""

import re
import traceback
from collections.abc import Iterable
from hashlib import sha256
from typing import Final
from urllib.parse import quote

from gateway.access.key_search import ISSUED_KEY, without_keys
from gateway.access.keys import PREFIX, PUBLIC_LENGTH
from gateway.access.percent_encoding import TooOftenEncodedError, blank_encoded
from gateway.printable import Lines, printable

REDACTED: Final = "[redacted]"

PUBLIC_PATHS: Final = ("/admin/", "/static/")
"""Paths of Django's own pages. Their second segment is not a key."""

# Up to the end or to a last /messages: uvicorn logs decoded paths, in which a key may contain slashes.
_SECOND_SEGMENT: Final = re.compile(r"^(/+[^/?]*/+)([^?]+?)(?=(?:/messages)?/?(?:\?|$))")

# No server has a colon in its name: a client has left the name out.
_FIRST_SEGMENT: Final = re.compile(r"^(/+)(?!\[)([^/?%]*:[^?]*)")

# Django's own pages have no colon in their paths. A key that somebody put there may have slashes after it.
_KEYED_TAIL: Final = re.compile(r"/(?!\[)[^/?]*(?::|%3[Aa])[^?]*")

_TOKEN: Final = re.compile(r"""[?&]?[^\s"'<>?&]+""")
"""What may be a path, or one parameter of a query, in a text."""

_SHOWN_KEY: Final = re.compile(rf"\[{PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}}\]", re.ASCII)

SECRET_NAMES: Final = re.compile("api_?key|key|token|access_token|password|secret|session_id", re.I)
"""Names of secret parameters in a query."""

_CREDENTIALS: Final = (
    # As a header is written, and as Python prints one.
    re.compile(
        r"""((?:authorization|cookie|mcp-session-id)['"]?+\s*+[:=,]\s*+(?:b(?=['"]))?+['"]?+)(?!\[redacted\])[^'"\r\n]+""",
        re.I,
    ),
    re.compile(r"(\bbearer\s+)(?!\[redacted\])[A-Za-z0-9._~+/=:-]{8,}", re.I),
    re.compile(rf"""([?&](?:{SECRET_NAMES.pattern})=)[^&\s"'<>]+""", re.I),
    re.compile(r"""(session_id=)[^&\s"'<>]+"""),
)

_PATH_OF_SCOPE: Final = re.compile(r"""('(?:raw_)?path': b?')([^']*)""")
"""In an ASGI scope that an ASGI server prints."""

MAX_KEPT_PATHS: Final = 1000
MAX_KEPT_LENGTH: Final = 500
"""How many redacted paths are kept, and up to which length."""

_MIN_SECRET_LENGTH: Final = 4
"""Shorter keys are not replaced: that would blank out ordinary words, and they are not secrets."""


def redact(text: str, *secrets: str | None) -> str:
    """`text` without the given secrets, as they are or as they stand in a URL."""
    for secret in secrets:
        if secret and len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, REDACTED)
            if "%" in text:
                text = text.replace(quote(secret), REDACTED).replace(quote(secret, safe=""), REDACTED)
    return text


class PathRedactor:
    """Blanks session keys and session ids in this host's URLs, wherever they stand in a text.

    `/{server_name}/{session_key}…?session_id=…` keeps its server and its shape.
    """

    def __init__(self, server_names: Iterable[str]) -> None:
        self.learn(server_names)
        # A key under a name that is not served. Not what looks like a file and a line number.
        self._keyed = re.compile(r"(/[^/?\s\"'<>]+/)([^/?\s\"'<>:]+(?::|%3[Aa])(?!\d{1,6}(?:\D|$))[^/?\s\"'<>]+)")

    def learn(self, server_names: Iterable[str]) -> None:
        """Take these for the servers' names from now on."""
        self._shown: dict[bytes, str] = {}
        """Digest of a path -> what is shown of it."""
        names = "|".join(re.escape(name) for name in sorted(server_names, key=len, reverse=True))
        # Not the files of a server's folder, which tracebacks name.
        self._known = re.compile(rf"(/(?:{names})/)(?![\w.-]+\.py\b)([^/?\s\"'<>]+)") if names else None
        # As it stands in another URL's query.
        self._quoted = re.compile(rf"(%2F(?:{names})%2F)((?:(?!%2F|%3F)[^/?&\s\"'<>])+)", re.I) if names else None

    def __call__(self, text: str) -> str:
        """`text` with its session keys and session ids blanked."""
        text = self._blank(text)
        return _TOKEN.sub(self._blank_encoded, text) if "%" in text else text

    def path(self, path: str) -> str:
        """A request's path and query. The second segment of the path is a key, whatever it looks like.

        Clients repeat their paths, and this is done for every line of the access log, so the last results are kept.
        """
        digest = sha256(path.encode("utf-8", "surrogatepass")).digest()  # the text has secrets
        shown = self._shown.get(digest)
        if shown is None:
            shown = self._redacted_path(path)
            if len(self._shown) >= MAX_KEPT_PATHS:
                self._shown.clear()
            if len(shown) <= MAX_KEPT_LENGTH:
                self._shown[digest] = shown
        return shown

    def _redacted_path(self, path: str) -> str:
        if "%" not in path:
            return printable(self._blank(self._blank_second(path)))
        path, mark, query = path.partition("?")
        shown = self._blank(self._blank_second(path))
        try:
            shown = blank_encoded(shown, lambda decoded: self._blank(self._blank_second(decoded)))
        except TooOftenEncodedError:
            shown = f"/{REDACTED}"
        return printable(shown + self(mark + query))

    def _blank(self, text: str) -> str:
        """Blank what stands in `text` as it is."""
        if "/" in text:
            if self._known is not None:
                text = self._known.sub(_blank_segment, text)
            text = self._keyed.sub(_blank_segment, text)
            if "path'" in text:
                text = _PATH_OF_SCOPE.sub(lambda match: match.group(1) + self._blank_second(match.group(2)), text)
        if self._quoted is not None and "%2" in text:
            text = self._quoted.sub(_blank_segment, text)
        if "=" in text or ":" in text or "," in text or " " in text:
            for pattern in _CREDENTIALS:
                text = pattern.sub(rf"\1{REDACTED}", text)
        return without_keys(text)

    def _blank_encoded(self, match: re.Match[str]) -> str:
        """A word of a text, decoded and blanked if that shows a secret in it; otherwise as it is."""
        token = match.group()
        try:
            return blank_encoded(token, self._blank) if "%" in token else token
        except TooOftenEncodedError:
            return REDACTED

    @staticmethod
    def _blank_second(path: str) -> str:
        if path.startswith(PUBLIC_PATHS):
            return _KEYED_TAIL.sub(f"/{REDACTED}", path)
        return _SECOND_SEGMENT.sub(_blank_segment, _FIRST_SEGMENT.sub(_blank_segment, path))


def _blank_segment(match: re.Match[str]) -> str:
    """Replace a session key; by the public part if the key was issued here, so that operators can find it."""
    segment = match.group(2)
    issued = ISSUED_KEY.search(segment)
    if issued is not None:
        return f"{match.group(1)}[{issued.group(1)}]"
    return match.group(1) + (segment if _SHOWN_KEY.fullmatch(segment) else REDACTED)


def traceback_text(error: BaseException, api_key: str | None) -> Lines:
    """An exception as Python prints it, without the key of the caller for whom it was raised."""
    return Lines(redact("".join(traceback.format_exception(error)), api_key))
