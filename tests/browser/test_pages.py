"""What holds for every page: nothing foreign, no error, no barrier, nothing cut, wide and narrow, light and dark."""

from __future__ import annotations

from tests.browser.scene import Scene, pages
from tests.support.browser import NARROW, WIDE, Visitor


def test_pages_ask_nothing_of_other_hosts_break_no_policy_report_no_error_cut_nothing_and_have_no_barrier(
    scene: Scene, operator: Visitor
) -> None:
    barriers, cut = [], {}
    for path in pages(scene):
        operator.visit(path)
        for size in (WIDE, NARROW):
            for is_dark in (False, True):
                operator.resize(size, is_dark=is_dark)
                # Colours do not change what else there is on the page.
                barriers += operator.barriers(*(["color-contrast"] if is_dark else []))
            if pixels := operator.overflow():
                cut[path, size] = pixels
        operator.resize(WIDE)
    assert barriers == []
    assert cut == {}
    assert operator.faults == []
