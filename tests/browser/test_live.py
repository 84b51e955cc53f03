"""What an operator sees happen, and makes happen, in a browser: sessions come, go, and are ended; lines are logged."""

from __future__ import annotations

import time

from playwright.sync_api import expect

from tests.browser.scene import Scene
from tests.support.browser import Visitor
from tests.support.deadlines import within
from tests.support.processes import until
from tests.support.wire import tool_call

SHOWN_SECONDS = 2.0
"""How soon a page shows what happened."""

CLIENTS = "/admin/records/sessionrecord/?q="


def is_listed(operator: Visitor, client_name: str) -> bool:
    operator.page.goto(CLIENTS + client_name)
    return operator.page.locator("#result_list .field-client").count() == 1


def test_session_is_listed_within_two_seconds_of_connecting_and_no_longer_two_seconds_after_leaving(
    scene: Scene, operator: Visitor
) -> None:
    session = scene.host.session("workshop", scene.ada.session_key, name="comes-and-goes")
    until(lambda: is_listed(operator, "comes-and-goes"), SHOWN_SECONDS)
    session.close()
    until(lambda: not is_listed(operator, "comes-and-goes"), SHOWN_SECONDS)
    assert operator.faults == []


def test_end_button_closes_the_stream_within_two_seconds(scene: Scene, operator: Visitor) -> None:
    with scene.host.session("workshop", scene.ada.session_key, name="to-be-ended") as session:
        until(lambda: is_listed(operator, "to-be-ended"), SHOWN_SECONDS)
        operator.page.click("#result_list tbody th a")
        session.send(tool_call(1, "wait", seconds=60, name="ended-by-button"))
        started = time.monotonic()
        operator.page.click("text=End this session")
        session.wait_closed(SHOWN_SECONDS)
        assert time.monotonic() - started < within(SHOWN_SECONDS)
        expect(operator.page.locator(".messagelist")).to_contain_text("The session is being ended.")
        until(lambda: not is_listed(operator, "to-be-ended"), SHOWN_SECONDS)
    assert operator.faults == []


def test_log_lines_of_a_server_come_while_one_looks(scene: Scene, operator: Visitor) -> None:
    operator.page.goto("/admin/records/serverrecord/?q=workshop")
    operator.page.click("#result_list tbody th a")
    expect(operator.page.locator(".log")).to_contain_text("ada")
    with scene.host.session("workshop", scene.bob.session_key):
        expect(operator.page.locator(".log .log-line").last).to_contain_text("bob", timeout=within(4) * 1000)
    assert operator.faults == []


def test_overview_shows_sessions_come_and_go_without_reloading(scene: Scene, operator: Visitor) -> None:
    operator.page.goto("/admin/")
    expect(operator.page.locator("#overview-connection")).to_have_text("Live.", timeout=within(10) * 1000)
    sessions = operator.page.locator("#overview-sessions table")
    # A tick, and the time to show it.
    tick = within(SHOWN_SECONDS + 0.5) * 1000
    with scene.host.session("workshop", scene.ada.session_key, name="on-the-overview"):
        expect(sessions).to_contain_text("on-the-overview", timeout=tick)
    expect(sessions).not_to_contain_text("on-the-overview", timeout=tick)
    assert operator.faults == []


def test_overview_has_its_past_as_plots_and_as_a_table_by_keyboard(scene: Scene, operator: Visitor) -> None:
    operator.page.goto("/admin/")
    operator.page.locator("[data-range=week]").focus()
    operator.page.keyboard.press("Enter")
    expect(operator.page.locator("[data-range=week]")).to_have_attribute("aria-pressed", "true")
    expect(operator.page.locator("#overview-plots canvas")).to_have_count(4)
    operator.page.locator("[data-range=hour]").press("Enter")
    operator.page.locator(".overview-plots summary").press("Enter")
    # The first point comes ten seconds after the start of the host.
    expect(operator.page.locator("#overview-points tbody tr").first).to_be_visible(timeout=within(15) * 1000)
    assert operator.faults == []
