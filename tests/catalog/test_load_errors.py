"""What operators and authors learn of a server that fails to load."""

from pathlib import Path
from typing import Any

import pytest

from gateway.catalog.definitions import LoadFailure
from gateway.catalog.discovery import discover


def failure_of(tmp_path: Path, **files: str) -> LoadFailure:
    """Load a server of these files. Their names stand without `.py`, and with `__` for `/`."""
    for name, source in files.items():
        path = tmp_path / "project" / "servers" / "one" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (failure,) = discover([tmp_path / "project" / "servers"]).failures
    return failure


CASES: list[tuple[dict[str, str], str]] = [
    ({"main": "\n1 / 0"}, "In main.py, line 2: ZeroDivisionError: division by zero"),
    ({"main": "import store", "store": "\n\n1 / 0"}, "In store.py, line 3: ZeroDivisionError: division by zero"),
    ({"main": "from . import store", "store": "\n1 / 0"}, "In store.py, line 2: ZeroDivisionError: division by zero"),
    ({"main": "import db.pool", "db__pool": "\n1 / 0"}, "In db/pool.py, line 2: ZeroDivisionError: division by zero"),
    ({"main": "import json\njson.loads('x')"}, "In main.py, line 2: JSONDecodeError: Expecting value"),
    ({"main": "import store", "store": "def (:\n"}, "In store.py, line 1: SyntaxError: invalid syntax"),
    ({"main": "x = (\n"}, "In main.py, line 1: SyntaxError: '(' was never closed"),
    ({"main": "import store", "store": "import sys\nsys.exit('no key')"}, "In store.py, line 2: SystemExit: no key"),
    (
        {"main": "from store import x", "store": ""},
        "In main.py, line 1: ImportError: cannot import name 'x' from 'store'",
    ),
    ({"main": "raise ValueError"}, "In main.py, line 1: ValueError"),
]


@pytest.mark.parametrize(("files", "reason"), CASES)
def test_reason_names_the_file_and_line_of_the_servers_own_code(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    failure = failure_of(tmp_path, **files)
    assert failure.reason.startswith(reason)
    assert "gumcp_" not in failure.reason


def test_reason_names_the_file_of_the_project_where_the_servers_own_code_is_not_involved(tmp_path: Path) -> None:
    shared = tmp_path / "project" / "servers" / "two"
    shared.mkdir(parents=True)
    (shared / "lib.py").write_text("\n1 / 0")
    failure = failure_of(tmp_path, main=f"import sys\nsys.path.append({str(shared)!r})\nimport lib")
    assert failure.reason.startswith("In main.py, line 3: ZeroDivisionError")
    assert f'"{shared / "lib.py"}", line 2' in failure.traceback


MISSING: list[tuple[str, Any]] = [
    ("import no_such_lib.sub", "If it is a package, install it for the host: python -m pip install no_such_lib"),
    ("import telegram", "python -m pip install python-telegram-bot"),
    ("import json.nothing", "The installed package has no such module: check its version"),
    ("import store.nothing", "No module named 'store.nothing'; 'store' is not a package"),
]


@pytest.mark.parametrize(("source", "remedy"), MISSING)
def test_module_that_is_missing_comes_with_its_remedy(tmp_path: Path, source: str, remedy: str) -> None:
    assert failure_of(tmp_path, main=source, store="").reason.endswith(remedy)


def test_module_that_is_missing_comes_with_the_servers_own_requirements(tmp_path: Path) -> None:
    folder = tmp_path / "project" / "servers" / "one"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("no-such-lib")
    reason = failure_of(tmp_path, main="import no_such_lib").reason
    assert reason.endswith(f"python -m pip install -r {folder / 'requirements.txt'}")


def test_traceback_begins_with_the_authors_frames_and_has_none_of_the_hosts(tmp_path: Path) -> None:
    source = "try:\n    import store\nexcept ZeroDivisionError as error:\n    raise RuntimeError('no store') from error"
    text = failure_of(tmp_path, main=source, store="import json\n1 / 0").traceback
    frames = [line.strip() for line in text.splitlines() if line.startswith("  File")]
    folder = tmp_path / "project" / "servers" / "one"
    assert frames == [
        f'File "{folder / "main.py"}", line 2, in <module>',
        f'File "{folder / "store.py"}", line 2, in <module>',
        f'File "{folder / "main.py"}", line 4, in <module>',
    ]
    assert text.endswith("RuntimeError: no store\n")
    assert "1 / 0" in text
    assert "gumcp_" not in text
