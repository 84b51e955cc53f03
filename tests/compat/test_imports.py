import builtins
import importlib
import importlib.util
import logging
import sys
import threading
import types as python_types
from typing import Any

import mcp
import mcp_types
import pydantic
import pytest

from gateway.compat.fastmcp.server import FastMCP
from gateway.compat.models import McpError
from gateway.compat.server import CompatServer
from tests.support.projects import SERVERS, importable_project, load_main


def execute(code: str) -> dict[str, Any]:
    with importable_project() as namespace:
        scope: dict[str, Any] = {"__builtins__": namespace, "__name__": "v1_server_inline"}
        exec(compile(code, "main.py", "exec"), scope)  # noqa: S102  # what a loader does
    return scope


@pytest.mark.parametrize(
    "statement",
    [
        "from mcp.server import Server",
        "from mcp.server.lowlevel import Server",
        "from mcp.server.lowlevel.server import Server",
        "import mcp; Server = mcp.server.Server",
        "import mcp.server; Server = mcp.server.Server",
        "import mcp.server as s; Server = s.Server",
        "from mcp import server; Server = server.Server",
        "import mcp.server.lowlevel.server as low; Server = low.Server",
        "from mcp.server import *",
    ],
)
def test_every_way_to_import_server_gives_the_one_with_decorators(statement: str) -> None:
    assert execute(statement)["Server"] is CompatServer


@pytest.mark.parametrize(
    "statement",
    [
        "from mcp.types import AnyUrl, Tool",
        "import mcp.types as types; AnyUrl, Tool = types.AnyUrl, types.Tool",
        "from mcp import types; AnyUrl, Tool = types.AnyUrl, types.Tool",
        "import mcp; AnyUrl, Tool = mcp.types.AnyUrl, mcp.types.Tool",
        "import mcp.server; import mcp.types; AnyUrl, Tool = mcp.types.AnyUrl, mcp.types.Tool",
        "from mcp.types import *",
    ],
)
def test_every_way_to_import_types_has_the_names_of_version_1(statement: str) -> None:
    scope = execute(statement)

    assert scope["AnyUrl"] is pydantic.AnyUrl
    assert scope["Tool"](name="a", inputSchema={}, own=1).own == 1


@pytest.mark.parametrize(
    "statement",
    [
        "from mcp.server import NotificationOptions, Server",
        "from mcp.server.models import InitializationOptions",
        "from mcp.server.lowlevel.helper_types import ReadResourceContents",
        "from mcp.server.lowlevel.server import request_ctx, NotificationOptions, RequestContext",
        "from mcp.shared.context import RequestContext",
        "from mcp.shared.exceptions import McpError, UrlElicitationRequiredError",
        "from mcp import McpError, ErrorData, stdio_server",
        "from mcp.types import FileUrl, Any, BaseModel, Field, Literal, ResourceReference, ServerResult",
        "from mcp.server.stdio import stdio_server",
        "from mcp.server.session import ServerSession",
        "from mcp.types import INTERNAL_ERROR, LATEST_PROTOCOL_VERSION",
    ],
)
def test_names_in_use_in_the_field_can_be_imported(statement: str) -> None:
    execute(statement)


def test_version_2_names_can_be_imported_as_well() -> None:
    scope = execute("from mcp.server import MCPServer, ServerRequestContext\nfrom mcp import Client, MCPError")

    assert scope["MCPServer"] is mcp.server.MCPServer  # type: ignore[attr-defined]
    assert scope["MCPError"] is mcp.MCPError


@pytest.mark.parametrize(
    ("statement", "expression"),
    [
        ("from mcp.server.fastmcp import FastMCP, Context, Image, Audio, Icon", "FastMCP"),
        ("import mcp.server.fastmcp", "mcp.server.fastmcp.FastMCP"),
        ("import mcp", "mcp.server.fastmcp.server.FastMCP"),
        ("import mcp.server.fastmcp as fast", "fast.FastMCP"),
        ("from mcp.server import FastMCP", "FastMCP"),
        ("from mcp.server import fastmcp", "fastmcp.server.FastMCP"),
        ("from mcp.server.fastmcp.server import Context, FastMCP, Settings", "FastMCP"),
        ("from mcp.server.fastmcp import *", "FastMCP"),
    ],
)
def test_fastmcp_of_version_1_is_found_by_all_its_names(statement: str, expression: str) -> None:
    assert eval(expression, execute(statement)) is FastMCP


@pytest.mark.parametrize(
    "statement",
    [
        "from mcp.server.fastmcp.exceptions import FastMCPError, InvalidSignature, ResourceError, ToolError",
        "from mcp.server.fastmcp.prompts import Prompt, PromptManager, base\nbase.UserMessage('hello')",
        "from mcp.server.fastmcp.prompts.base import AssistantMessage, Message, UserMessage",
        "from mcp.server.fastmcp.prompts.manager import PromptManager",
        "from mcp.server.fastmcp.resources import DirectoryResource, FileResource, FunctionResource, TextResource",
        "from mcp.server.fastmcp.resources import types, base\ntypes.HttpResource, base.Resource",
        "from mcp.server.fastmcp.resources.templates import ResourceTemplate",
        "from mcp.server.fastmcp.resources.resource_manager import ResourceManager",
        "from mcp.server.fastmcp.tools import Tool, ToolManager",
        "from mcp.server.fastmcp.tools.base import Tool",
        "from mcp.server.fastmcp.utilities import types, logging\ntypes.Image, logging.get_logger('x')",
        "from mcp.server.fastmcp.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata",
        "from mcp.server.fastmcp.utilities.types import Audio, Image",
    ],
)
def test_what_modules_import_from_fastmcp_of_version_1_is_there(statement: str) -> None:
    execute(statement)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from mcp.types import Nonsense", "cannot import name 'Nonsense' from 'mcp.types'"),
        ("import mcp.nonsense", "No module named 'mcp.nonsense'"),
        ("from mcp.nonsense import x", "No module named 'mcp.nonsense'"),
        ("from mcp import nonsense", "cannot import name 'nonsense' from 'mcp'"),
        ("import mcp.server.fastmcp.nonsense", "No module named 'mcp.server.fastmcp.nonsense'"),
        ("from mcp.server.fastmcp import Nonsense", "cannot import name 'Nonsense' from 'mcp.server.fastmcp'"),
    ],
)
def test_names_that_no_version_has_are_import_errors(statement: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        execute(statement)


def test_import_inside_a_function_that_runs_later_finds_version_1() -> None:
    scope = execute(
        "def later():\n    from mcp.types import AnyUrl\n    import mcp.server\n    return mcp.server.Server"
    )

    assert scope["later"]() is CompatServer


def test_nothing_that_others_import_changes() -> None:
    execute("import mcp.types\nmcp.types.Tool = None\nfrom mcp.server import Server")

    assert builtins.__import__ is __import__
    assert mcp.types.Tool is mcp_types.Tool
    assert not hasattr(importlib.import_module("mcp.types"), "AnyUrl")
    assert importlib.import_module("mcp.server").Server is not CompatServer
    execute("import mcp.types\ndel mcp.types.Tool")  # the mark made above is in the view


def test_views_keep_their_identity() -> None:
    scope = execute("import mcp, mcp.types as types\nfrom mcp import types as again\nfrom mcp.types import Tool")

    assert scope["types"] is scope["again"] is scope["mcp"].types
    assert scope["Tool"] is scope["types"].Tool
    assert isinstance(scope["types"], python_types.ModuleType)


def test_models_work_with_both_spellings() -> None:
    types = execute("import mcp.types as types")["types"]
    tool = types.Tool(name="a", inputSchema={"type": "object"}, annotations=types.ToolAnnotations(readOnlyHint=True))

    assert tool.inputSchema == tool.input_schema == {"type": "object"}
    assert tool.annotations.readOnlyHint is True
    assert isinstance(tool, mcp_types.Tool)
    assert isinstance(mcp_types.Tool(name="b", input_schema={}), types.Tool)
    assert not isinstance(mcp_types.Prompt(name="b"), types.Tool)
    tool.inputSchema = {}
    assert tool.input_schema == {}
    with pytest.raises(AttributeError):
        _ = tool.noSuchField


def test_class_derived_from_a_model_is_a_class_of_its_own() -> None:
    scope = execute("from mcp.types import Tool\nclass Scoped(Tool):\n    scopes: list = []")

    assert isinstance(scope["Scoped"](name="a", inputSchema={}), scope["Tool"])
    assert not isinstance(mcp_types.Tool(name="b", input_schema={}), scope["Scoped"])


def test_mcp_error_takes_error_data() -> None:
    error = McpError(mcp_types.ErrorData(code=-32000, message="no", data={"a": 1}))

    assert (str(error), error.error.code, error.data) == ("no", -32000, {"a": 1})
    assert isinstance(error, mcp.MCPError)


def test_modules_load_in_several_threads_at_once() -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)
    # The others have no factory, or one that needs a loop.
    paths = [path for path in sorted(SERVERS.glob("*/main.py")) if path.parent.name not in ("fastmcp_shop", "one_loop")]

    def load(namespace: dict[str, Any], number: int) -> None:
        try:
            barrier.wait(10)
            module = load_main(paths[number], namespace)
            assert isinstance(module.server("maria"), CompatServer)
        except BaseException as exc:
            failures.append(exc)

    with importable_project() as namespace:
        workers = [threading.Thread(target=load, args=(namespace, number)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)

    assert failures == []


def test_server_whose_folder_has_a_hyphen_loads() -> None:
    with importable_project() as namespace:
        module = load_main(SERVERS / "result-forms" / "main.py", namespace)

    assert isinstance(module.server("maria"), CompatServer)


def test_loading_a_project_leaves_the_path_and_the_root_logger_as_they_were() -> None:
    path, handlers = list(sys.path), list(logging.root.handlers)

    with importable_project() as namespace:
        for main in sorted(SERVERS.glob("*/main.py")):
            load_main(main, namespace)

    assert (sys.path, logging.root.handlers) == (path, handlers)
