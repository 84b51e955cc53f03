"""Which tests the processes of `pytest-xdist` run together, which run first, and how they share what comes before.

Tests that share a host run in one process, or each process would start a host of its own. All others may run anywhere,
so that no process is left with a long list at the end. `--dist loadgroup` of pytest-xdist 3.8 does not do that with
pytest 9.2: it writes the group into a field that pytest reads no more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

GROUPS = pytest.StashKey[dict[str, str]]()
"""Name of a test -> name of its group. What is not in it may run beside any other."""


class GroupScheduling(LoadScopeScheduling):
    """Gives the tests of a group to one process, and groups to processes in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any, groups_file: Path) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)
        self._groups_file = groups_file

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        groups: dict[str, str] = json.loads(self._groups_file.read_text(encoding="utf-8"))
        return groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid, nodeid)


def arrange(items: list[pytest.Item]) -> dict[str, str]:
    """Put tests with hosts first, those that share one before the others, and return which run together.

    Short ones are left for the end, when processes have nothing else to do. Otherwise the order stays random.
    """
    groups = {
        item.nodeid: group
        for item in items
        if isinstance(item, pytest.Function) and (group := group_of(item)) is not None
    }
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, item.nodeid not in groups))
    return groups


def group_of(item: pytest.Function) -> str | None:
    """Return the name of the group of a test; None if it may run beside any other."""
    if item.get_closest_marker("e2e") is None:
        # Quick tests: one at a time would cost more in messages than it gains.
        return item.module.__name__
    shared = [name for name in item.fixturenames if _scope(item, name) in ("module", "package")]
    if not shared:
        return None
    # A parameter of a shared fixture makes one host for each of its values.
    params = item.callspec.params if hasattr(item, "callspec") else {}
    values = [str(params[name]) for name in shared if name in params]
    return "-".join([item.module.__name__, *values])


def _scope(item: pytest.Function, fixture_name: str) -> str:
    definitions = item._fixtureinfo.name2fixturedefs.get(fixture_name)
    return definitions[-1].scope if definitions else "function"


def import_own_share(config: pytest.Config) -> None:
    """Import every n-th test module, as the n-th of several processes of pytest-xdist, before it collects all of them.

    In a new clone pytest rewrites the assertions of each module, which takes longer than all else before the tests, and
    keeps the result in a file. Processes that go through the modules in one order would all rewrite all of them.
    """
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        return
    places = [Path(argument.partition("::")[0]) for argument in config.args]
    modules = sorted(path for place in places if place.is_dir() for path in place.rglob("test_*.py"))
    number = int(worker["workerid"].removeprefix("gw"))
    for path in modules[number :: worker["workercount"]]:
        # What cannot be imported is reported when it is collected.
        with contextlib.suppress(Exception):
            importlib.import_module(".".join(path.resolve().relative_to(config.rootpath).with_suffix("").parts))
