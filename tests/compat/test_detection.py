"""Which modules count as written for version 1."""

from pathlib import Path

import pytest

from gateway.compat.detection import is_written_for_version_1
from tests.support.processes import ROOT
from tests.support.projects import SERVERS, importable_project, load_main

VERSION_1 = sorted(SERVERS.glob("*/main.py"))
VERSION_2 = sorted((ROOT / "servers").glob("*/main.py"))


@pytest.mark.parametrize("path", VERSION_1, ids=lambda path: path.parent.name)
def test_modules_that_use_what_only_version_1_has_are_version_1s(path: Path) -> None:
    with importable_project() as namespace:
        assert is_written_for_version_1(load_main(path, namespace))


@pytest.mark.parametrize("path", VERSION_2, ids=lambda path: path.parent.name)
def test_modules_of_version_2_are_not(path: Path) -> None:
    with importable_project() as namespace:
        assert not is_written_for_version_1(load_main(path, namespace))
