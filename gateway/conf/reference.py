"""Writes `.env.example` and the table of docs/settings.md from the declarations: `make settings`.

It needs no Django settings, so it works while they are wrong.
"""

import re
import textwrap
from pathlib import Path
from typing import Any, Final

from gateway.conf import GatewaySettings, Section, Setting
from gateway.conf.declarations import Computed
from gateway.conf.environment import FILE_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLE: Final = ROOT / ".env.example"
PAGE: Final = ROOT / "docs" / "settings.md"

_TABLE: Final = re.compile(r"(<!-- settings: .* -->\n).*(<!-- end of settings -->)", re.DOTALL)

_WIDTH: Final = 118


def example() -> str:
    """Return `.env.example`."""
    lines = [
        "# Every setting of a guMCP host, with its default. Copy this file to .env beside manage.py, or set the",
        "# variables in the environment, which goes before the file. A host does not start with a wrong or unknown",
        "# setting.",
        "#",
        "# A duration has a unit: 30s, 5m, 2h, 7d. A size is in bytes, or has one: 64KiB, 4MiB.",
        f"# {FILE_VARIABLE}=PATH in the environment names another file; empty, none is read.",
        "# The file's other variables are handed on to the servers.",
    ]
    for item in _items():
        if isinstance(item, Section):
            lines += ["", "", f"# -- {item.title}", *_comment(item.text)]
        else:
            default = item.default.text if isinstance(item.default, Computed) else ""
            text = f"{item.text} Default: {default}." if default else item.text
            value = item.example if item.example is not None else item.default
            lines += ["", *_comment(text), f"#{item.name}={value}"]
    return "\n".join(lines) + "\n"


def table() -> str:
    """Return the reference of docs/settings.md."""
    lines: list[str] = []
    for item in _items():
        if isinstance(item, Section):
            lines += ["", f"### {item.title}", ""]
            lines += [item.text, ""] if item.text else []
            lines += ["| setting | default | what it is | value |", "|---|---|---|---|"]
        else:
            default = item.default.text if isinstance(item.default, Computed) else f"`{item.default}`"
            shown = "" if default == "``" else default
            lines.append(f"| `{item.name}` | {shown} | {item.text} | {item.kind.allowed} |")
    return "\n".join([*lines, "", ""])


def page(text: str) -> str:
    """Return the page `text` with the reference in its place."""
    return _TABLE.sub(lambda match: match.group(1) + table() + match.group(2), text)


def _items() -> list[Section | Setting[Any]]:
    return [item for item in vars(GatewaySettings).values() if isinstance(item, (Section, Setting))]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


if __name__ == "__main__":
    EXAMPLE.write_text(example(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
