"""docs/starting-and-stopping.md says how long each step takes: what it says is what the code has."""

import re
from importlib import import_module

import pytest

from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "starting-and-stopping.md"
ROWS = re.findall(
    r"\| (?:every )?([\d.]+) s \| `([a-z_.]+)\.([A-Z_]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


def test_page_has_the_whole_timetable() -> None:
    names = {name for name in vars(import_module("gateway.serving.timetable")) if name.endswith("_SECONDS")}
    assert names <= {name for _, _, name in ROWS}
    assert len(ROWS) >= 20


@pytest.mark.parametrize(("seconds", "module", "name"), ROWS, ids=[f"{module}.{name}" for _, module, name in ROWS])
def test_time_on_the_page_is_that_of_the_code(seconds: str, module: str, name: str) -> None:
    assert getattr(import_module(f"gateway.{module}"), name) == float(seconds)
