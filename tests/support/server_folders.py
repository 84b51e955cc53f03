"""Folders of servers that tests write on the spot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Final

WriteServer = Callable[..., Path]
"""The fixture `write_server`."""

SOUND_SERVER: Final = """
    from mcp.server import Server

    def server(user_id, api_key=None):
        return Server("sound")

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


def write_main(server_dir: Path, name: str, source: str = SOUND_SERVER) -> Path:
    """Write `main.py` of the server `name`, and return its folder."""
    folder = server_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(textwrap.dedent(source))
    return folder
