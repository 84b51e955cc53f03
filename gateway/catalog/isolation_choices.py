"""Which folders operators want in a process of their own, as chosen in the admin.

The choices are kept in a file in GUMCP_DATA_DIR: folders are loaded before the database is read, and the code of a
folder that is to run elsewhere must not run in the host first. `host.steering` writes the file when a choice in the
database changes.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.conf import conf

logger = logging.getLogger(__name__)

FILE_NAME: Final = "isolation.json"


def isolation_choices() -> dict[str, bool]:
    """Server name -> whether it is to run in a process of its own. Servers that nobody has chosen for are missing."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
        return {str(name): bool(isolates) for name, isolates in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); the choices in it are not used", _path(), type(error).__name__)
        return {}


def write_isolation_choices(choices: Mapping[str, bool]) -> None:
    """Replace the file.

    Raises:
        OSError: it cannot be written.
    """
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=FILE_NAME)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(dict(sorted(choices.items())), file)
    os.replace(temporary, path)


def _path() -> Path:
    return Path(conf.data_dir) / FILE_NAME
