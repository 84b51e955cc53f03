"""Whose modules a server gets when it imports, and that they work as those of a file that is run directly."""

import builtins
import importlib
import pickle
import sys
import textwrap
import threading
from collections.abc import Callable
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import pytest

from gateway.catalog import server_modules
from gateway.catalog.discovery import discover
from gateway.catalog.loading import Project
from gateway.compat.models import McpError
from gateway.compat.server import CompatServer

OBJECT = """
from mcp.server import MCPServer
server = MCPServer("x", version="1")
"""

FIRST_ON_PATH = "import os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\n"

Write = Callable[[str, str], Path]


@pytest.fixture
def server_dir(tmp_path: Path) -> Path:
    """The directory of servers of a project that stands in `tmp_path`."""
    return tmp_path / "src" / "servers"


@pytest.fixture
def write(tmp_path: Path, server_dir: Path) -> Write:
    """Write a file of the project. A `main.py` gets a server object as well."""

    def write_file(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = textwrap.dedent(source)
        path.write_text(source + (OBJECT if path.name == "main.py" else ""))
        return path

    return write_file


def load_all(*server_dirs: Path) -> dict[str, ModuleType]:
    """Load servers as a host does and return their main modules."""
    found = discover(server_dirs)
    assert not found.failures, found.failures[0].traceback
    return {definition.name: main_module_of(definition.folder) for definition in found.definitions}


def main_module_of(folder: Path) -> ModuleType:
    """The newest main module of a folder."""
    path = str(folder / "main.py")
    return [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == path][-1]


def load_one(server_dir: Path) -> ModuleType:
    (module,) = load_all(server_dir).values()
    return module


def reload(folder: Path) -> ModuleType:
    outcome = Project(folder.parent, is_reload=True).load(folder, {})
    assert not hasattr(outcome, "reason"), outcome
    return main_module_of(folder)


# -- modules beside main.py


@pytest.mark.parametrize(
    "statement",
    [
        "import helpers",
        "import helpers as helpers",
        "from helpers import WORD",
        "from helpers import *",
        "from . import helpers",
        "from .helpers import WORD",
        "import importlib; helpers = importlib.import_module('helpers')",
        "from importlib import import_module; helpers = import_module('.helpers', __package__)",
        "helpers = __import__('helpers')",
        "import tools.words",
        "import tools.words as words; WORD = words.WORD",
        "from tools import words; WORD = words.WORD",
        "from tools.words import WORD",
        "from tools import WORD",
        "from .tools.words import WORD",
        "import importlib; WORD = importlib.import_module('tools.words').WORD",
        "import importlib; tools = importlib.import_module('.words', 'tools')",
        "exec('from tools.words import WORD')",
        f"{FIRST_ON_PATH}import helpers",
        f"{FIRST_ON_PATH}sys.path.append('lib')\nimport helpers",
        "import sys, pathlib; sys.path.append(str(pathlib.Path(__file__).parent / 'lib'))\nimport inside",
    ],
)
def test_two_servers_each_get_their_own_module_of_one_name(write: Write, server_dir: Path, statement: str) -> None:
    for name in ("one", "two"):
        for file in ("helpers.py", "tools/words.py", "lib/inside.py"):
            write(f"src/servers/{name}/{file}", f"WORD = 'of {name}'")
        write(f"src/servers/{name}/tools/__init__.py", "from tools.words import WORD\nfrom helpers import WORD as SAME")
        write(f"src/servers/{name}/main.py", statement)
    modules = load_all(server_dir)
    for name, module in modules.items():
        values = [vars(module).get(key) for key in ("WORD", "helpers", "tools", "inside")]
        words = {getattr(value, "WORD", value) for value in values if value is not None}
        assert words == {f"of {name}"}, statement


def test_module_is_one_whether_it_is_imported_by_its_own_name_or_relatively(write: Write, server_dir: Path) -> None:
    write("src/servers/one/tools/words.py", "COUNT = []")
    write("src/servers/one/main.py", "import tools.words\nfrom .tools import words as same\nimport main\n")
    module = load_one(server_dir)
    assert module.tools.words is module.same
    assert module.main is module


def test_import_inside_a_function_finds_the_servers_module_in_any_thread_and_after_a_reload(
    write: Write, server_dir: Path
) -> None:
    for name in ("one", "two"):
        write(f"src/servers/{name}/late.py", f"WORD = 'of {name}'")
        write(f"src/servers/{name}/main.py", "def word():\n    import late\n    return late.WORD\n")
    modules = load_all(server_dir)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda m=module: seen.append(m.word())) for module in modules.values()]
    for thread in threads:
        thread.start()
        thread.join(10)
    assert seen == ["of one", "of two"]
    write("src/servers/one/late.py", "WORD = 'new of one'")
    new = reload(server_dir / "one")
    assert [new.word(), modules["one"].word(), modules["two"].word()] == ["new of one", "of one", "of two"]


def test_name_that_a_module_gets_is_in_sys_modules_and_pickles(write: Write, server_dir: Path) -> None:
    source = """
        from __future__ import annotations
        import dataclasses, sys, typing

        @dataclasses.dataclass
        class Thing:
            word: Word
            kind: typing.ClassVar[str] = "thing"

        class Word(str): ...

        ME = sys.modules[__name__]
        HINTS = typing.get_type_hints(Thing)
    """
    for name in ("one", "two"):
        write(f"src/servers/{name}/things.py", source)
        write(f"src/servers/{name}/main.py", "from things import *\nimport things\nclass Own:\n    pass\n")
    modules = load_all(server_dir)
    for module in modules.values():
        assert module.things.ME is module.things
        assert module.things.HINTS["word"] is module.things.Word
        assert [field.name for field in module.things.Thing.__dataclass_fields__.values()] == ["word", "kind"]
        for made in (module.things.Thing(module.things.Word("a")), module.Own()):
            assert type(pickle.loads(pickle.dumps(made))) is type(made)
    assert modules["one"].things.Thing is not modules["two"].things.Thing


def test_first_load_has_the_same_name_in_every_process(write: Write, server_dir: Path) -> None:
    write("src/servers/one/main.py", "")
    first = load_one(server_dir)
    for name in [name for name in sys.modules if name.startswith("gumcp_") and "site" not in name]:
        del sys.modules[name]
    assert load_one(server_dir).__name__ == first.__name__


def test_file_that_a_server_loads_by_its_path_finds_the_servers_modules(write: Write, server_dir: Path) -> None:
    write("src/servers/one/helpers.py", "WORD = 'of one'")
    write("src/servers/one/plugins/a.py", "import helpers\nfrom mcp.types import AnyUrl\nWORD = helpers.WORD\n")
    source = """
        import importlib.util, os
        path = os.path.join(os.path.dirname(__file__), "plugins", "a.py")
        spec = importlib.util.spec_from_file_location("plugin_a", path)
        plugin = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plugin)
        FOUND = [importlib.util.find_spec(name) for name in ("helpers", "json", "no_such_module")]
    """
    write("src/servers/one/main.py", source)
    module = load_one(server_dir)
    assert module.plugin.WORD == "of one"
    assert [bool(found) for found in module.FOUND] == [True, True, False]


def test_module_of_a_server_that_fails_is_reported_by_its_own_name_and_tried_again(
    write: Write, server_dir: Path
) -> None:
    write("src/servers/one/main.py", "import missing_of_one")
    (failure,) = discover([server_dir]).failures
    assert "No module named 'missing_of_one'." in failure.reason
    write("src/servers/one/helpers.py", "from . import nothing_like_it")
    write("src/servers/one/main.py", "import helpers")
    (failure,) = discover([server_dir]).failures
    assert "cannot import name 'nothing_like_it'" in failure.reason
    assert "gumcp_" not in failure.reason
    write("src/servers/one/helpers.py", "")
    assert not discover([server_dir]).failures


def test_module_of_a_server_wins_over_an_installed_one_and_others_get_the_installed_one(
    write: Write, server_dir: Path
) -> None:
    sys.modules.pop("colorsys", None)
    sys.modules.pop("this_calendar_user", None)
    write("src/servers/one/colorsys.py", "WORD = 'of one'")
    write("src/servers/one/calendar.py", "WORD = 'of one'")
    write("src/servers/one/sys.py", "WORD = 'of one'")
    write("src/servers/one/main.py", f"{FIRST_ON_PATH}import calendar, colorsys, sys, http.cookiejar\n")
    write("src/servers/two/main.py", "import calendar, colorsys")
    modules = load_all(server_dir)
    assert (modules["one"].calendar.WORD, modules["one"].colorsys.WORD) == ("of one", "of one")
    assert modules["one"].sys is sys
    assert modules["two"].calendar is importlib.import_module("calendar")
    assert modules["two"].colorsys is importlib.import_module("colorsys")
    assert not hasattr(sys.modules["calendar"], "WORD")


def test_library_that_a_server_imports_does_not_see_the_servers_modules(
    write: Write, server_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("installed/a_library.py", "try:\n    import optional_extra\nexcept ImportError:\n    optional_extra = None\n")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    write("src/servers/one/optional_extra.py", "")
    write("src/servers/one/main.py", f"{FIRST_ON_PATH}import a_library, optional_extra\n")
    module = load_one(server_dir)
    assert module.a_library.optional_extra is None
    assert "optional_extra" not in sys.modules
    assert module.optional_extra
    del sys.modules["a_library"]


def test_folder_without_init_hides_no_installed_package(write: Write, server_dir: Path) -> None:
    write("src/servers/one/json/data.txt", "")
    write("src/servers/one/words/english.py", "WORD = 'of one'")
    write("src/servers/one/main.py", "import json, words.english\n")
    module = load_one(server_dir)
    assert module.json is importlib.import_module("json")
    assert module.words.english.WORD == "of one"


def test_nothing_that_others_import_changes(write: Write, server_dir: Path) -> None:
    before = builtins.__import__
    write("src/servers/one/helpers_of_nobody_else.py", "")
    write("src/servers/one/main.py", f"{FIRST_ON_PATH}import helpers_of_nobody_else\nimport colorsys")
    load_all(server_dir)
    assert builtins.__import__ is before
    assert "__builtins__" in vars(sys.modules["colorsys"])
    assert vars(sys.modules["colorsys"])["__builtins__"]["__import__"] is before
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("helpers_of_nobody_else")


# -- projects


def test_two_projects_each_get_their_own_package_of_one_name(tmp_path: Path, write: Write) -> None:
    for project in ("red", "blue"):
        write(f"{project}/src/auth/factory.py", f"from src.words import WORD\nPROJECT = '{project}'")
        write(f"{project}/src/words.py", f"WORD = 'of {project}'")
        write(
            f"{project}/src/servers/{project}-one/main.py",
            "import sys, os\n"
            "sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), '../../..')))\n"
            "from src.auth.factory import PROJECT, WORD\nimport src.auth.factory\n"
            "def late():\n    from src.auth import factory\n    import src.late\n    return factory, src.late.WORD\n",
        )
        write(f"{project}/src/late.py", f"WORD = 'late of {project}'")
    modules = load_all(tmp_path / "red/src/servers", tmp_path / "blue/src/servers")
    for project in ("red", "blue"):
        module = modules[f"{project}-one"]
        assert (project, f"of {project}") == (module.PROJECT, module.WORD)
        factory, word = module.late()
        assert (factory, word) == (module.src.auth.factory, f"late of {project}")


def test_servers_of_a_project_share_its_modules_and_nothing_else(write: Write, server_dir: Path) -> None:
    write("src/auth/__init__.py", "from mcp.shared.exceptions import McpError\nCACHE = {}\n")
    for name in ("one", "two"):
        write(f"src/servers/{name}/helpers.py", "")
        write(f"src/servers/{name}/main.py", "import src.auth\nimport helpers\nfrom src.auth import McpError\n")
    modules = load_all(server_dir)
    assert modules["one"].src.auth is modules["two"].src.auth
    assert modules["one"].helpers is not modules["two"].helpers
    assert modules["one"].McpError is McpError


def test_project_whose_root_is_on_the_path_of_the_host_is_a_project_like_others(
    write: Write, server_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lib_of_theirs/__init__.py", "from mcp.server import Server")
    write("plain_of_theirs/deep.py", "from mcp.server import Server")
    write("src/servers/one/main.py", "import lib_of_theirs, plain_of_theirs.deep")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = load_one(server_dir)
    assert module.lib_of_theirs.Server is module.plain_of_theirs.deep.Server is CompatServer


def test_project_around_the_host_itself_is_a_project_like_others(
    write: Write, server_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_modules, "_HOST_FOLDER", tmp_path.resolve())
    write("plain_of_theirs/deep.py", "from mcp.server import Server")
    write("src/servers/one/main.py", "import plain_of_theirs.deep")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_one(server_dir).plain_of_theirs.deep.Server is CompatServer


def test_folder_outside_of_the_project_that_a_server_puts_on_the_path_is_the_servers_own(
    write: Write, server_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "framework.py").write_text("import settings_of_mine\nfrom mcp.types import AnyUrl\n")
    for name in ("one", "two"):
        write(f"src/servers/{name}/settings_of_mine.py", f"WORD = 'of {name}'")
        write(f"src/servers/{name}/main.py", f"import sys\nsys.path.append({str(elsewhere)!r})\nimport framework\n")
    modules = load_all(server_dir)
    words = {name: module.framework.settings_of_mine.WORD for name, module in modules.items()}
    assert words == {"one": "of one", "two": "of two"}
    assert modules["one"].framework.AnyUrl is pydantic.AnyUrl


def test_packages_that_were_installed_into_a_folder_of_a_server_keep_their_names(
    write: Write, server_dir: Path
) -> None:
    write("src/servers/one/vendor/vendored_lib-1.0.dist-info/METADATA", "")
    write("src/servers/one/vendor/vendored_lib.py", "import vendored_dependency\n")
    write("src/servers/one/vendor/vendored_dependency.py", "")
    write("src/servers/one/vendor/vendored_late.py", "")
    source = """
        import os, sys
        sys.path.insert(0, os.path.join(os.path.dirname(__file__), "vendor"))
        import vendored_lib
        def late():
            import vendored_late
            return vendored_late
    """
    write("src/servers/one/main.py", source)
    module = load_one(server_dir)
    assert module.vendored_lib is sys.modules["vendored_lib"]
    assert module.late() is sys.modules["vendored_late"]
    for name in ("vendored_lib", "vendored_dependency", "vendored_late"):
        del sys.modules[name]


def test_module_of_a_project_in_a_servers_folder_is_loaded_anew_with_the_server(write: Write, server_dir: Path) -> None:
    words = write("src/servers/one/words.py", "WORD = 1")
    write("src/servers/one/main.py", "from src.servers.one import words\nimport src.servers.one.words as same")
    first = load_one(server_dir)
    words.write_text("WORD = 2")
    assert (reload(server_dir / "one").words.WORD, first.words.WORD) == (2, 1)
    words.write_text("1 / 0")
    outcome: Any = Project(server_dir, is_reload=True).load(server_dir / "one", {})
    assert "ZeroDivisionError" in outcome.reason
    words.write_text("WORD = 3")
    assert reload(server_dir / "one").same.WORD == 3


def test_failed_load_leaves_none_of_its_modules_behind(write: Write, server_dir: Path) -> None:
    write("src/servers/one/helpers.py", "")
    write("src/servers/one/lib/inside.py", "")
    write(
        "src/servers/one/main.py",
        "import sys, helpers\nsys.path.append(__file__.replace('main.py', 'lib'))\nimport inside\n1 / 0\n",
    )
    before = set(sys.modules)
    discover([server_dir])
    left = [name for name in set(sys.modules) - before if name.startswith("gumcp_server_")]
    assert not left


def test_many_threads_import_a_late_module_once(write: Write, server_dir: Path) -> None:
    write("src/servers/one/late.py", "import time\nSTARTED = time.monotonic_ns()\ntime.sleep(0.05)\nDONE = True\n")
    write("src/servers/one/main.py", "def late():\n    import late\n    return late.STARTED, late.DONE\n")
    module = load_one(server_dir)
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(module.late())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_import_hook_of_somebody_else_does_not_stand_between(
    write: Write, server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HookedLoader(SourceFileLoader):
        """As beartype's, which FastMCP brings along."""

    monkeypatch.setattr(sys, "path_hooks", [FileFinder.path_hook((HookedLoader, [".py"])), *sys.path_hooks])
    write("src/servers/one/helpers.py", "from mcp.types import AnyUrl")
    write("src/servers/one/main.py", "import helpers")
    assert load_one(server_dir).helpers.AnyUrl is pydantic.AnyUrl
