import json
import sys
from pathlib import Path

import pytest

import gateway
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.exceptions import UnknownServer
from tests.support.processes import manage, run
from tests.support.server_folders import WriteServer

MARKER = """
    import os, pathlib
    pathlib.Path(os.environ["MARKER"]).touch()
    raise RuntimeError("executed")
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "command", [("migrate", "--verbosity", "0"), ("check",), ("serve", "--help"), ("call", "--help")]
)
def test_command_leaves_server_modules_alone(
    tmp_path: Path, write_server: WriteServer, command: tuple[str, ...]
) -> None:
    directory, marker = write_server("marking", MARKER), tmp_path / "executed"
    done = manage(*command, data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory), MARKER=str(marker))
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert "marking" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_check_does_not_import_the_sdk(tmp_path: Path) -> None:
    # It takes most of the time of a command, and check runs at the start of most of them.
    code = (
        "import sys; sys.argv = ['manage.py', 'check']; import manage; manage.main();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'mcp', 'mcp_types', 'fastmcp'}))"
    )
    done = run(sys.executable, "-c", code, data_dir=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.usefixtures("processes")
def test_server_directories_are_a_path_list_with_relative_paths_from_the_projects_root(
    tmp_path: Path, write_server: WriteServer
) -> None:
    directory = write_server("sound")
    done = manage("list_servers", "--json", data_dir=tmp_path, GUMCP_SERVER_DIRS=f"{directory}:servers")
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)]
    assert names[0] == "sound"
    assert {"simple-tools-server", "time"} <= set(names[1:])


def test_servers_are_loaded_when_they_are_asked_for() -> None:
    assert GatewayConfig.current().registry.names == ["bystander", "moody", "workshop"]


def test_registry_knows_what_was_discovered() -> None:
    failure = LoadFailure("broken", Path("/broken"), "reason")
    registry = Registry(Discovery(list(GatewayConfig.current().registry), [failure]))
    assert registry.get("workshop").name == "workshop"
    assert len(registry) == 3
    assert registry.failures == [failure]


@pytest.mark.parametrize("name", ["broken", "", "Workshop", "workshop "])
def test_registry_gives_out_nothing_else(name: str) -> None:
    registry = Registry(Discovery(list(GatewayConfig.current().registry), [LoadFailure("broken", Path("/b"), "r")]))
    with pytest.raises(UnknownServer) as error:
        registry.get(name)
    assert not name or name not in str(error.value)


def test_map_of_the_code_names_every_module() -> None:
    folder = Path(gateway.__file__).parent
    modules = {path.stem for path in folder.glob("[a-z]*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert gateway.__doc__ is not None
    assert {name for name in modules if f"`{name}`" not in gateway.__doc__} == set()
