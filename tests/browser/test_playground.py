"""The playground as an operator uses it: forms, progress, questions, cancelling, and results that are not believed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from tests.support.admin_site import MAKE_USERS
from tests.support.browser import CHROMIUM, NARROW, WIDE, Visitor, running_browser
from tests.support.canary import CANARY
from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, ROOT, manage, until

SERVERS = f"{BUNDLED_SERVERS}:{ROOT / 'tests' / 'servers' / 'forms'}"


@pytest.fixture(scope="module")
def host(start_host: StartHost) -> Iterator[HostProcess]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with start_host(server_dirs=SERVERS) as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        yield host


@pytest.fixture(scope="module")
def operator(host: HostProcess) -> Iterator[Visitor]:
    expect.set_options(timeout=within(WAIT_SECONDS) * 1000)
    with running_browser() as browser:
        visitor = Visitor(browser, host.base_url)
        visitor.log_in("root", "root-password")
        yield visitor
        visitor.close()


class Playground:
    """The page with an open session."""

    def __init__(self, operator: Visitor, server: str, user: str = "ada") -> None:
        self.page = operator.visit(f"/-/playground/?server={server}")
        self.page.fill("#playground-who", user)
        self.page.click("#playground-begin")
        expect(self.page.locator("#playground-status")).to_contain_text("Connected to")
        self.panel = self.page.locator("#playground-panel")

    def choose(self, name: str) -> None:
        self.page.locator("#playground-items .item-name").get_by_text(name, exact=True).click()
        expect(self.panel.get_by_role("heading", name=name, exact=True)).to_be_focused()

    def run(self) -> Locator:
        """Press the form's button. Returns the newest result, which may still be under way."""
        self.panel.locator("button.run-it").click()
        return self.page.locator(".run").first

    def result(self, name: str) -> Locator:
        self.choose(name)
        run = self.run()
        expect(run.locator(".run-status")).to_contain_text("Done")
        return run

    def field(self, name: str) -> Locator:
        return self.panel.locator(f".field:has(> label > .field-name:text-is('{name}'))").first

    def enter(self, name: str, text: str) -> None:
        self.field(name).locator("input, textarea").fill(text)

    def errors(self) -> list[str]:
        """The errors beside the fields, without what browsers say of JSON in words of their own."""
        texts = self.panel.locator(".fields .field-error").all_inner_texts()
        return [text.partition(":")[0] for text in texts if text]


def test_form_makes_arguments_of_every_kind_and_shows_errors_beside_the_fields(operator: Visitor) -> None:
    playground = Playground(operator, "shapes")
    playground.choose("shape")
    playground.enter("amount", "0.25")
    playground.enter("count", "1.5")
    playground.enter("free", "{bad")
    playground.enter("zip", "12")
    playground.run()
    assert playground.errors() == [
        "Enter a value.",
        "Enter a value.",
        "The number must be at least 0.5 and at most 10.",
        "A whole number is needed.",
        "Enter a value.",  # the city: its object is not left out
        "Enter at least 1 (0 now).",
        "This is not JSON",
    ]
    expect(playground.field("title").locator("textarea")).to_be_focused()
    expect(playground.page.locator(".run")).to_have_count(0)

    playground.enter("title", "two\nlines")
    playground.field("colour").locator("select").select_option(label="3")
    playground.enter("amount", "1.5")
    playground.enter("count", "")
    playground.field("urgent").locator("select").select_option(label="no")
    playground.enter("city", "Graz")
    playground.panel.get_by_role("button", name="Add to rows", exact=True).click()
    for number in ("12", "-7"):
        playground.panel.get_by_role("button", name="Add to rows 1", exact=True).click()
        playground.page.keyboard.type(number)
    playground.panel.get_by_role("button", name="Add to rows", exact=True).click()
    playground.panel.get_by_label("b", exact=True).check()
    playground.enter("free", '[1, {"x": null}]')
    playground.enter("__proto__", "own")
    run = playground.run()
    expect(run.locator(".run-status")).to_contain_text("Done")
    sent = {
        "title": "two\nlines",
        "colour": 3,
        "amount": 1.5,
        "urgent": False,
        "loud": True,
        "place": {"city": "Graz", "zip": 12},
        "rows": [[12, -7], []],
        "tags": ["b"],
        "free": [1, {"x": None}],
        "__proto__": "own",
    }
    texts = run.locator(".content pre").all_text_contents()
    assert [json.loads(text) for text in texts] == [sent, {"said": sent}]

    playground.panel.get_by_role("button", name="Enter as JSON").click()
    arguments = playground.panel.get_by_label("Arguments")
    assert json.loads(arguments.input_value()) == sent
    arguments.fill(json.dumps({**sent, "rows": [[5]]}))
    playground.panel.get_by_role("button", name="Enter in fields").click()
    expect(playground.field("rows 1 1").locator("input")).to_have_value("5")
    # A repetition runs what was run, whatever is in the form by now.
    playground.page.get_by_role("button", name="Repeat", exact=True).click()
    expect(playground.page.locator(".run-done")).to_have_count(2)
    assert json.loads(str(playground.page.locator(".run .content pre").first.text_content())) == sent
    assert operator.faults == []


def test_schema_without_end_becomes_a_form_of_bounded_size(operator: Visitor) -> None:
    playground = Playground(operator, "shapes")
    playground.choose("endless")
    assert playground.panel.locator("textarea").count() < 1000
    assert operator.faults == []


def test_what_servers_send_is_shown_as_text(operator: Visitor) -> None:
    playground = Playground(operator, "shapes")
    run = playground.result("hostile")
    assert "<script>alert(2)</script>" in run.inner_text()
    assert playground.page.locator(".playground").locator("img, script, iframe, a").count() == 0
    run.get_by_role("button", name="Read").click()
    expect(playground.page.locator(".run").first.locator(".run-status")).to_contain_text("Failed")
    assert operator.faults == []


def test_progress_comes_before_the_result_and_cancel_reaches_the_handler(operator: Visitor) -> None:
    playground = Playground(operator, "everything")
    run = playground.result("test_tool_with_progress")
    assert run.locator(".run-steps li").all_inner_texts() == ["0 of 100", "50 of 100", "100 of 100"]
    run = playground.result("test_tool_with_logging")
    assert run.locator(".run-log li").count() == 3

    playground = Playground(operator, "shapes", "grace")
    playground.choose("wait")
    run = playground.run()
    expect(run.get_by_role("button", name="Cancel")).to_be_focused()
    run.get_by_role("button", name="Cancel").click()
    expect(run.locator(".run-status")).to_contain_text("Cancelled")
    until(lambda: "grace" in playground.result("was_cancelled").inner_text())
    assert operator.faults == []


def test_operator_answers_what_the_server_asks(operator: Visitor) -> None:
    playground = Playground(operator, "everything")
    question = playground.page.locator(".question")
    playground.choose("test_elicitation_sep1034_defaults")
    run = playground.run()
    expect(question.get_by_role("heading")).to_be_focused()
    question.get_by_label("age").fill("x")
    question.get_by_role("button", name="Answer").click()
    expect(question.locator(".field-error").nth(1)).to_have_text("A whole number is needed.")
    question.get_by_label("age").fill("41")
    question.get_by_role("button", name="Answer").click()
    expect(run).to_contain_text('action=accept, content={"age": 41, "name": "John Doe", "score": 95.5')

    playground.choose("test_elicitation")
    playground.enter("message", "Who?")
    run = playground.run()
    expect(question).to_contain_text("Who?")
    question.get_by_role("button", name="Decline").click()
    expect(run).to_contain_text("action=decline")

    playground.choose("test_sampling")
    playground.enter("prompt", "2 + 2?")
    run = playground.run()
    expect(question).to_contain_text("user: 2 + 2?")
    question.get_by_label("answer").fill("5, or so")
    question.get_by_role("button", name="Answer").click()
    expect(run).to_contain_text("LLM response: 5, or so")
    assert operator.faults == []


def test_address_that_a_server_asks_to_open_is_a_link_only_if_it_is_one_of_the_web(operator: Visitor) -> None:
    playground = Playground(operator, "shapes")
    question = playground.page.locator(".question")
    playground.choose("ask_to_open")
    playground.enter("url", "javascript:alert(1)")
    run = playground.run()
    expect(question).to_contain_text("javascript:alert(1)")
    assert question.locator("a").count() == 0
    question.get_by_role("button", name="Dismiss").click()
    expect(run).to_contain_text("cancel")
    playground.enter("url", "https://example.com/consent")
    run = playground.run()
    expect(question.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
    question.get_by_role("button", name="Done").click()
    expect(run).to_contain_text("accept")
    assert operator.faults == []


def test_images_sounds_resources_and_prompts_are_shown(operator: Visitor) -> None:
    playground = Playground(operator, "everything")
    image = playground.result("test_image_content").locator("img")
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 0
    sound = playground.result("test_audio_content").locator("audio")
    assert sound.evaluate("(sound) => sound.error === null")
    playground.page.locator("[data-kind=resources]").click()
    assert "static text resource" in playground.result("Static text").inner_text()
    playground.choose("Template")
    playground.enter("id", "4/2")
    run = playground.run()
    expect(run).to_contain_text("test://template/4%2F2/data")
    playground.page.locator("[data-kind=prompts]").click()
    playground.choose("test_prompt_with_arguments")
    playground.enter("arg1", "one")
    playground.enter("arg2", "two")
    expect(playground.run()).to_contain_text("arg1='one', arg2='two'")
    assert operator.faults == []


def test_tool_is_run_by_keyboard_alone(operator: Visitor) -> None:
    page = operator.visit("/-/playground/?server=shapes")

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#playground-who")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    expect(page.locator("#playground-kinds [aria-pressed=true]")).to_be_focused()
    tab_to("#playground-filter")
    page.keyboard.type("shape")
    tab_to(".item")
    page.keyboard.press("Enter")
    for text in ("by keyboard", "g", "2"):  # a letter chooses in a list
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    tab_to(".field-group > .button")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".run-status")).to_contain_text("Done")
    assert '"title": "by keyboard"' in page.locator(".run .content").first.inner_text()
    assert operator.faults == []


def test_page_has_no_barriers_while_it_is_used(operator: Visitor) -> None:
    playground = Playground(operator, "everything")
    playground.result("test_tool_with_logging")
    playground.choose("test_elicitation_sep1330_enums")
    playground.run()
    expect(playground.page.locator(".question")).to_be_visible()
    barriers = operator.barriers()
    assert operator.overflow() == 0
    operator.resize(NARROW, is_dark=True)
    barriers += operator.barriers("color-contrast")
    assert operator.overflow() == 0
    operator.resize(WIDE)
    assert barriers == []


def test_session_is_listed_with_its_user_and_ends_when_the_page_is_left(host: HostProcess, operator: Visitor) -> None:
    def states() -> list[str]:
        query = "SELECT state FROM records_sessionrecord WHERE user_id = 'linus' AND transport = 'console'"
        return [row["state"] for row in host.rows(query)]

    playground = Playground(operator, "shapes", "linus")
    playground.choose("shape")
    playground.enter("title", CANARY)
    playground.field("colour").locator("select").select_option(label="red")
    playground.enter("amount", "2")
    playground.panel.get_by_role("button", name="Add to rows", exact=True).click()
    expect(playground.run().locator(".run-status")).to_contain_text("Done")
    until(lambda: states() == ["open"])
    operator.visit("/admin/")
    until(lambda: states() == ["closed"])
    assert CANARY not in host.log()
    for path in host.data_dir.glob("gumcp.sqlite3*"):
        assert CANARY.encode() not in path.read_bytes()
    playground = Playground(operator, "shapes", "linus")
    playground.page.click("#playground-end")
    expect(playground.page.locator("#playground-status")).to_have_text("The session has ended.")
