"""What a server may be called. Its name is its folder's name and the first segment of its URLs."""

import re
from typing import Final

DJANGO_SEGMENTS: Final = frozenset({"-", "admin", "health_check", "metrics", "static", "favicon.ico", "robots.txt"})
"""First path segments of Django's pages."""

RESERVED_NAMES: Final = DJANGO_SEGMENTS | {"messages"}
"""Names that no server may have: Django's pages, and the last segment of the URLs that SSE clients post to."""

SERVER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""A name that needs no encoding in a URL."""
