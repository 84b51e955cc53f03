"""Virtual environments with other packages than the project's. uv makes them: it is much faster than venv and pip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

UV: Final = str(Path(sys.executable).with_name("uv"))


def steps_to_make(folder: Path, *requirements: str) -> list[list[str]]:
    """Return the commands that make an environment in `folder`, with this Python and with `requirements`."""
    return [
        [UV, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [UV, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements],
    ]
