"""Executes modules as the host does, with version 1's imports, without finding and describing servers."""

import importlib.util
import itertools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.catalog.server_modules import ServerModules

PROJECT = Path(__file__).parent.parent / "servers" / "v1_project"
SERVERS = PROJECT / "src" / "servers"

_numbers = itertools.count()


@contextmanager
def importable_project(root: Path = PROJECT) -> Iterator[dict[str, Any]]:
    """Hand out builtins with which modules import from a project, and leave no trace of it."""
    path, modules = list(sys.path), set(sys.modules)
    root_handlers, level = list(logging.root.handlers), logging.root.level
    try:
        yield ServerModules(root, f"gumcp_project_of_test_{next(_numbers)}").builtins
    finally:
        sys.path[:] = path
        logging.root.handlers[:] = root_handlers
        logging.root.setLevel(level)
        for name in set(sys.modules) - modules:
            if name.startswith(("gumcp_", "v1_server_")):
                del sys.modules[name]


def load_main(path: Path, namespace: dict[str, Any]) -> ModuleType:
    """Execute one `main.py` under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"v1_server_{next(_numbers)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = namespace
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
