"""Take pictures of every page, wide and narrow, light and dark: `make screenshots`.

    python -m tests.browser.screenshots [FOLDER] [PART OF A PATH]

The pictures are for people to look at. What can be checked without eyes is in the tests beside this file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.browser.scene import pages, shown_host
from tests.support.browser import CHROMIUM, NARROW, WIDE, Visitor, running_browser
from tests.support.host_process import running_host
from tests.support.processes import ROOT, migrate


def main(folder: Path, part: str) -> None:
    """Run a host and take the pictures."""
    if CHROMIUM is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gumcp-shown-") as temporary, running_browser() as browser:
        data_dir = Path(temporary) / "data"
        data_dir.mkdir()
        migrate(data_dir)

        def start(data_dir: Path, **options: Any) -> Any:
            return running_host(data_dir, None, **options)

        with shown_host(start, Path(temporary)) as scene:
            visitor = Visitor(browser, scene.host.base_url)
            visitor.log_in("root", "root-password")
            for path in pages(scene):
                if part not in path:
                    continue
                page = visitor.visit(path)
                name = path.partition("?")[0].strip("/").replace("/", "-")
                faults = []
                for size in (WIDE, NARROW):
                    for is_dark in (False, True):
                        visitor.resize(size, is_dark=is_dark)
                        faults += visitor.barriers()
                        if pixels := visitor.overflow():
                            faults.append(f"{pixels} pixels are cut at {size[0]}")
                        picture = folder / f"{name}-{size[0]}-{'dark' if is_dark else 'light'}.png"
                        # To hide the caret, Playwright would add an inline style, which the host's policy forbids.
                        page.screenshot(path=picture, full_page=True, caret="initial")
                print(path, *faults, sep="\n  ")
            print(*visitor.faults, sep="\n")
            visitor.close()


if __name__ == "__main__":
    main(Path([*sys.argv, str(ROOT / "screenshots")][1]), [*sys.argv, "", ""][2])
