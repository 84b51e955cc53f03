"""Every reason for a refusal is one of the fixed values of its metric's label."""

import ast
from pathlib import Path

import gateway
from gateway.http.refusals import _ANSWERS
from gateway.metrics import REFUSAL_REASONS

REFUSING = {"refuse": 2, "refuse_message": 2}
"""Functions that refuse, and the position of the reason among their arguments."""


def reasons_in_code() -> set[str]:
    found = set()
    for path in Path(gateway.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"{name}(" in text for name in REFUSING):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSING:
                reason = node.args[REFUSING[node.func.id]] if len(node.args) > 2 else None
                if isinstance(reason, ast.Constant):
                    found.add(reason.value)
    return found


def test_reasons_of_the_code_are_those_of_the_metric() -> None:
    used = reasons_in_code() | {reason for _, reason, _ in _ANSWERS.values()}
    assert len(used) > 15
    assert used <= set(REFUSAL_REASONS), used - set(REFUSAL_REASONS)


def test_reasons_are_in_order_and_each_is_there_once() -> None:
    assert sorted(set(REFUSAL_REASONS)) == list(REFUSAL_REASONS)
