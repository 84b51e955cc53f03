"""How often Python looks for garbage in cycles."""

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 20)


def look_seldom_for_garbage() -> None:
    """Let Python make more objects before it looks for garbage.

    A busy host makes hundreds of objects for each call, and frees nearly all of them without the collector. Importing
    makes a million that stay: looking at them again and again costs a tenth of a command's time.
    """
    gc.set_threshold(*THRESHOLDS)
