"""Loads the modules of `tests/servers/v1_project`, as a host would, with version 1's imports."""

import importlib.util
import itertools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.compat.imports import compat_builtins

PROJECT = Path(__file__).parent.parent / "servers" / "v1_project"
SERVERS = PROJECT / "src" / "servers"

_numbers = itertools.count()


@contextmanager
def importable_project(root: Path = PROJECT) -> Iterator[dict[str, Any]]:
    """Make a project importable and hand out the builtins for its modules; leave no trace of either."""
    before = list(sys.path)
    modules = set(sys.modules)
    root_handlers = list(logging.root.handlers)
    level = logging.root.level
    sys.path.insert(0, str(root))
    try:
        yield compat_builtins([root])
    finally:
        sys.path[:] = before
        logging.root.handlers[:] = root_handlers
        logging.root.setLevel(level)
        for name in set(sys.modules) - modules:
            if name == "src" or name.startswith(("src.", "v1_server_")):
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
