"""Says where and why the code of a server failed while it was loaded."""

import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from traceback import StackSummary, TracebackException
from typing import Final

import gateway
from gateway.catalog.server_modules import plain_names

_MAIN_THREAD_ONLY: Final = (
    "This code loads only in the main thread, where no reload is done: restart the host, "
    "or move what needs that thread out of the import."
)

_HOST_FOLDER: Final = str(Path(gateway.__file__).parent)

_DISTRIBUTIONS: Final = {
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "PyMuPDF",
    "github": "PyGithub",
    "googleapiclient": "google-api-python-client",
    "jwt": "PyJWT",
    "MySQLdb": "mysqlclient",
    "PIL": "Pillow",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "sklearn": "scikit-learn",
    "slack": "slack-sdk",
    "telegram": "python-telegram-bot",
    "yaml": "PyYAML",
}
"""What to install for modules whose packages have another name."""


def reason(error: BaseException, folder: Path) -> str:
    """Return what failed in the code of the server in `folder`, and where, as a sentence for the operator."""
    text = plain_names(_text(error))
    sentence = f"In {place_of(error, folder)}: {type(error).__name__}: {text}".rstrip(": ")
    if "main thread" in text and threading.current_thread() is not threading.main_thread():
        return f"{_MAIN_THREAD_ONLY} {sentence}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{sentence}. {_remedy(error.name.partition('.')[0], folder)}".rstrip(". ")
    return sentence


def timeout_reason(limit_seconds: float, place: str) -> str:
    """Return why a server was not loaded in time. `place`: where in its code it was, if that is known."""
    where = f": it was in {place}" if place else ""
    return f"main.py was not loaded after {limit_seconds:g} seconds{where}."


def traceback_text(error: BaseException) -> str:
    """Return the traceback without the frames of the host and of Python's import system: the author's come first."""
    described = TracebackException.from_exception(error)
    for part in _chain(described):
        own = [frame for frame in part.stack if not _is_hosts(frame.filename)]
        part.stack = StackSummary.from_list(own or part.stack)
    return plain_names("".join(described.format()))


def place_of(error: BaseException, folder: Path) -> str:
    """Return where an exception was raised, such as `store.py, line 3`.

    The innermost line of the server's own code; where there is none, of any code but libraries'.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_absolute():
        return _relative(error.filename, folder) + (f", line {error.lineno}" if error.lineno else "")
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if Path(file).is_relative_to(folder)]
    others = [(file, line) for file, line in frames if not (_is_hosts(file) or _is_librarys(file))]
    for file, line in (own or others)[-1:]:
        return f"{_relative(file, folder)}, line {line}"
    return "main.py"


def _remedy(module: str, folder: Path) -> str:
    """What to do about a module that is missing; nothing where the project should have it."""
    projects = (folder, *folder.parents[:3])
    if module == "mcp" or any((place / f"{module}.py").exists() or (place / module).is_dir() for place in projects):
        return ""
    if module in sys.modules:
        return "The installed package has no such module: check its version"
    if (folder / "requirements.txt").is_file():
        what = f"-r {folder / 'requirements.txt'}"
    else:
        what = _DISTRIBUTIONS.get(module, module)
    return f"If it is a package, install it for the host: python -m pip install {what}"


def _relative(file: str, folder: Path) -> str:
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file


def _is_hosts(file: str) -> bool:
    return file.startswith((_HOST_FOLDER, "<frozen importlib"))


def _is_librarys(file: str) -> bool:
    return file.startswith((sys.prefix, sys.base_prefix, "<")) or "site-packages" in Path(file).parts


def _chain(described: TracebackException) -> Iterator[TracebackException]:
    yield described
    for part in (described.__cause__, described.__context__, *(described.exceptions or ())):
        if part is not None:
            yield from _chain(part)


def _text(error: BaseException) -> str:
    """The text of an exception of foreign code, or nothing where asking for it raises."""
    try:
        return error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:
        return ""
