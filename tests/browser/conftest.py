"""One host with something to see, and one browser, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.scene import Scene, shown_host
from tests.support.browser import CHROMIUM, Visitor, running_browser
from tests.support.host_process import StartHost


@pytest.fixture(scope="module")
def scene(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A host that checks keys, with users, keys, sessions, and servers of which one does not load."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with shown_host(start_host, tmp_path_factory.mktemp("shown")) as scene:
        yield scene


@pytest.fixture(scope="module")
def operator(scene: Scene) -> Iterator[Visitor]:
    """An operator who may do everything, in a browser, logged in to the admin."""
    with running_browser() as browser:
        visitor = Visitor(browser, scene.host.base_url)
        visitor.log_in("root", "root-password")
        yield visitor
        visitor.close()
