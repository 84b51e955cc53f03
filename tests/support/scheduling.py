"""Which tests `pytest-xdist` gives to one process together, and which run first.

With `--dist loadgroup`, tests with the same group name run in one process. Tests that share a host must, or each
process would start a host of its own. All others may run anywhere, so that no process is left with a long list at the
end.
"""

from __future__ import annotations

import pytest


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


def name_without_group(node_id: str) -> str:
    """Return the name of a test without `@group`, which `pytest-xdist` appends: what one can pass to pytest again."""
    name, at, group = node_id.rpartition("@")
    return name if at and "]" not in group and "::" not in group else node_id
