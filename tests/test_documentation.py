"""The pages: their links lead somewhere, and the messages that they quote exist."""

from __future__ import annotations

import ast
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import ROOT

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").glob("*.md")]
    if "node_modules" not in path.parts
)
DOCS = sorted((ROOT / "docs").glob("*.md"))
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "``", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        kept = "".join(it for it in plain if it in " -_" or unicodedata.category(it)[0] in "LN")
        anchor = kept.replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert page.name == "README.md" or f"]({page.name})" in index


HOLE = "…"


@cache
def messages_of_code() -> frozenset[str]:
    """Every text in the code, with … in the place of what is filled in."""
    texts: set[str] = set()
    for path in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "gumcp_site").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                texts.add("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"%[.\d]*[a-z]", HOLE, node.value))
    return frozenset(texts)


def quoted_messages() -> list[str]:
    """The messages in the first column of the tables in the page."""
    found: list[str] = re.findall(r"^\| (?:\d{3} )?`([^`|]+)` \|", TROUBLE, re.MULTILINE)
    return found


@pytest.mark.parametrize("quoted", quoted_messages())
def test_messages_of_the_troubleshooting_page_exist(quoted: str) -> None:
    # A hole at the end stands for the rest of the message.
    wanted = quoted.strip(f" {HOLE}")
    assert any(wanted in text for text in messages_of_code()), quoted


def test_troubleshooting_page_quotes_messages_in_every_table() -> None:
    assert len(quoted_messages()) > 40


def test_settings_that_pages_name_exist() -> None:
    from gateway.conf import GatewaySettings
    from gateway.conf.environment import FILE_VARIABLE

    known = {*GatewaySettings.declared(), FILE_VARIABLE}
    # docs/settings.md shows what wrong ones print; tests/test_settings.py has that page.
    for page in [ROOT / "README.md", *(page for page in DOCS if page.name != "settings.md")]:
        named = set(re.findall(r"\bGUMCP_[A-Z_]*[A-Z](?![A-Z_…*])", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_commands_that_pages_name_exist() -> None:
    from django.core.management import get_commands

    known = {*get_commands(), "help"}
    for page in [ROOT / "README.md", *DOCS]:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:manage\.py|(?<![\w/.-])gumcp) ([a-z_]{4,})(?= |`|$)", text, re.MULTILINE))
        # `docker compose exec gumcp gumcp …`, `kubectl … gumcp-0 -- gumcp …`, and sentences about guMCP.
        assert named - known <= {"gumcp"}, page.name
