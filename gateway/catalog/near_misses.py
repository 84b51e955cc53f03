"""Says why something in a server directory is probably meant to be a server, and is not found as one.

A server is a folder with a `main.py` or a manifest. Many are written with another file, a level deeper, or as a single
file.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.catalog.definitions import NearMiss
from gateway.catalog.manifests import has_manifest

_ENTRY_FILES: Final = ("server.py", "app.py", "__main__.py", "mcp_server.py")
"""Files that others start servers from, the likeliest first."""

_OTHER_LANGUAGES: Final = ("package.json", "go.mod", "Cargo.toml", "pom.xml")

_MAKES_A_SERVER: Final = re.compile(rb"^(?!\s*#).*\b(?:FastMCP|MCPServer|Server)\(", re.MULTILINE)

_MAX_DEPTH: Final = 3
_MAX_FOLDERS: Final = 200
"""How many folders are searched for a `main.py` that lies deeper."""

_MAX_READ_BYTES: Final = 100_000

_SKIPPED: Final = frozenset({"node_modules", "site-packages", "venv", "env", "dist", "build", "tests", "test"})


def near_misses(server_dir: Path) -> list[NearMiss]:
    """Return what in `server_dir` is probably meant to be a server, by name; nothing if it cannot be read."""
    try:
        paths = sorted(path for path in server_dir.iterdir() if not path.name.startswith((".", "__")))
        if (server_dir / "main.py").is_file():
            hint = f"This is a server's own folder. Name the folder that contains it: {server_dir.resolve().parent}"
            return [NearMiss(server_dir.resolve().name, server_dir, hint)]
        found = [(path, _hint_for_folder(path) if path.is_dir() else _hint_for_file(path)) for path in paths]
    except OSError:
        return []
    return [NearMiss(path.name, path, hint) for path, hint in found if hint]


def _hint_for_file(path: Path) -> str:
    if _makes_a_server(path):
        return f"A server is a folder. Move {path.name} to {path.stem}/main.py."
    return ""


def _hint_for_folder(folder: Path) -> str:
    """Return what to do so that `folder` is found as a server; nothing if it is one, or is not meant to be one."""
    names = set(os.listdir(folder))
    if has_manifest(folder):
        return ""
    if "main.py" in names:
        return "" if (folder / "main.py").is_file() else "Its main.py is not a file that can be read."
    for name in sorted(names):
        if name.lower() == "main.py" or name.startswith("main.py."):
            return f"It has {name}, but no main.py. Rename the file."
    entries = [*_ENTRY_FILES, f"{folder.name}.py", f"{folder.name.replace('-', '_')}.py"]
    makers = [name for name in [*entries, *sorted(names)] if name in names and _makes_a_server(folder / name)]
    likely = [name for name in _ENTRY_FILES if name in names]
    if found := makers or likely:
        return _use_hint(found[0], Path(found[0]).stem)
    deeper = list(_deeper_mains(folder))
    if len(deeper) == 1:
        path = deeper[0].relative_to(folder)
        return _use_hint(str(path), ".".join(path.with_suffix("").parts))
    if deeper:
        parents = sorted({path.parent.parent for path in deeper})
        return f"It contains folders with a main.py. Add it to GUMCP_SERVER_DIRS: {parents[0]}"
    if others := [name for name in _OTHER_LANGUAGES if name in names]:
        return f"It has {others[0]}, but no main.py. A server in another language needs a server.json."
    return ""


def _use_hint(file: str, module: str) -> str:
    if not all(part.isidentifier() for part in module.split(".")) or module.startswith("__"):
        return f"It has {file}, but no main.py. Rename or move the file."
    return (
        f"It has {file}, but no main.py. Rename or move the file, or add a main.py with the line "
        f"`from {module} import server` (or the name that the server has there)."
    )


def _makes_a_server(path: Path) -> bool:
    if path.suffix != ".py":
        return False
    try:
        with path.open("rb") as file:
            return _MAKES_A_SERVER.search(file.read(_MAX_READ_BYTES)) is not None
    except OSError:
        return False


def _deeper_mains(folder: Path) -> Iterator[Path]:
    """Yield the `main.py` files below a folder, not deep and not for long."""
    level = [folder]
    seen = 0
    for _ in range(_MAX_DEPTH):
        level = [path for parent in level for path in _subfolders(parent)]
        for path in level:
            seen += 1
            if seen > _MAX_FOLDERS:
                return
            if (path / "main.py").is_file():
                yield path / "main.py"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith((".", "_")) and path.name not in _SKIPPED and path.is_dir()
        )
    except OSError:
        return []
