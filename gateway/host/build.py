"""Which versions this process consists of: the metric `gumcp_build_info`."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from gateway import __version__, metrics

ASGI_SERVERS: Final = ("daphne", "uvicorn", "hypercorn", "granian")
"""The ASGI servers that are told apart."""


def note_build() -> None:
    """Set the metric."""
    metrics.build_info.labels(__version__, platform.python_version(), _version("mcp"), asgi_server()).set(1)


def asgi_server() -> str:
    """The ASGI server that runs this process, with its version; `other` if it is an unknown one."""
    if "daphne.cli" in sys.modules or sys.argv[1:2] == ["serve"]:
        return f"daphne {_version('daphne')}"
    # Not by what is imported: the SDK imports uvicorn under every server.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.parent if spec is not None and spec.parent else Path(sys.argv[0]).stem
    return f"{name} {_version(name)}" if name in ASGI_SERVERS else "other"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
