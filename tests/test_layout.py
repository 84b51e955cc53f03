"""Where code of the tests may live."""

from __future__ import annotations

import ast
import re

from tests.support.processes import ROOT


def test_nothing_is_imported_from_a_test_module_or_from_conftest() -> None:
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        if "node_modules" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        # Most files need not be parsed.
        if not re.search(r"^ *(from|import) tests\.\S*(test_|conftest)", text, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(text)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            last = [module.rpartition(".")[2] for module in modules if module.startswith("tests.")]
            if any(name == "conftest" or name.startswith("test_") for name in last):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, "move what tests share to tests/support"
