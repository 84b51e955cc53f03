"""A real browser for tests: Debian's Chromium, watched while it visits pages of a host.

It notes what no page may do: break the Content-Security-Policy, ask another host for something, or report an error.
axe-core examines pages for people who do not see them or do not use a mouse.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.deadlines import WAIT_SECONDS, within

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
"""Debian's Chromium. Playwright would download one of its own."""

WIDE: Final = (1300, 900)
NARROW: Final = (390, 844)
"""Widths and heights of a window in pixels: of a laptop, and of a phone."""

_OPTIONS: Final = [
    "--no-sandbox",  # it refuses to start as root with one
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NOTE_VIOLATIONS: Final = """
    document.addEventListener("securitypolicyviolation", (event) => {
        console.error("Content-Security-Policy: " + event.violatedDirective + " " + event.blockedURI);
    });
"""
_OVERFLOW: Final = """
    Math.max(...[document.documentElement, ...document.querySelectorAll(".results")].map(
        (element) => element.scrollWidth - element.clientWidth
    ))
"""
_SERIOUS: Final = ("serious", "critical")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium for the length of a `with` block. Meanwhile no other event loop can run in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """One person at one host: cookies, a window, and a list of what was wrong."""

    def __init__(self, browser: Browser, base_url: str) -> None:
        self._base_url = base_url
        self._context = browser.new_context(base_url=base_url)
        self._context.set_default_timeout(within(WAIT_SECONDS) * 1000)
        self._context.add_init_script(_NOTE_VIOLATIONS)
        self.page: Page = self._context.new_page()
        self.faults: list[str] = []
        """What no page may do, and which page did it."""
        self._context.on("request", self._on_request)
        self._context.on("console", self._on_message)
        self._context.on("weberror", lambda error: self._note(f"uncaught: {error.error}"))
        self.resize(WIDE)

    def close(self) -> None:
        """Close the window and forget the cookies."""
        self._context.close()

    def log_in(self, name: str, password: str) -> None:
        """Log in to the admin."""
        self.page.goto("/admin/login/")
        self.page.fill("#id_username", name)
        self.page.fill("#id_password", password)
        self.page.click('[type="submit"]')
        self.page.wait_for_url("**/admin/")

    def visit(self, path: str) -> Page:
        """Open a page, which must be there."""
        answer = self.page.goto(path)
        assert answer is not None
        assert answer.status == 200, f"{path} answered {answer.status}"
        return self.page

    def resize(self, size: tuple[int, int], *, is_dark: bool = False) -> None:
        """Look at the page in a window of another size, in light or dark colours."""
        self.page.emulate_media(color_scheme="dark" if is_dark else "light")
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        # Colours change slowly, and are to be measured when they have changed.
        self.page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")

    def overflow(self) -> int:
        """How many pixels of the page, or of the list in it, are beyond the right edge of what shows them."""
        width: int = self.page.evaluate(_OVERFLOW)
        return width

    def barriers(self, *rules: str) -> list[str]:
        """What axe-core finds serious or critical: rule, element and reason. `rules`: these only."""
        # Preloading, it would read stylesheets again in ways that the policy forbids.
        options: dict[str, Any] = {"resultTypes": ["violations"], "preload": False}
        if rules:
            options["runOnly"] = list(rules)
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        violations: list[dict[str, Any]] = self.page.evaluate(
            "async (options) => (await axe.run(document, options)).violations", options
        )
        return [
            f"{self.page.url}: {violation['id']}: {node['html'][:200]}: {node.get('failureSummary', '')[:300]}"
            for violation in violations
            for node in violation["nodes"]
            if violation["impact"] in _SERIOUS
        ]

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((f"{self._base_url}/", "data:", "blob:")):
            self._note(f"foreign request: {request.url}")

    def _on_message(self, message: Any) -> None:
        if message.type == "error":
            self._note(f"error in the console: {message.text} ({message.location['url']})")

    def _note(self, what: str) -> None:
        self.faults.append(f"{self.page.url}: {what}")
