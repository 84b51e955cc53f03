import json
from pathlib import Path

import pytest

import gateway
from gateway.apps import SERVING_COMMANDS, GatewayConfig, _serves
from gateway.catalog.discovery import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.exceptions import UnknownServer
from tests.conftest import WriteServer
from tests.support.host_process import manage

MARKER = """
    import os, pathlib
    pathlib.Path(os.environ["MARKER"]).touch()
    raise RuntimeError("executed")
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["manage.py", "migrate"],
        ["./manage.py", "collectstatic", "--noinput"],
        ["/srv/gumcp/manage.py", "check", "--deploy"],
        ["manage.py", "makemigrations"],
        ["manage.py", "createsuperuser"],
        ["manage.py", "shell"],
        ["manage.py", "help", "serve"],
        ["manage.py"],
        ["django-admin", "migrate"],
        ["/usr/lib/python3/django/__main__.py", "migrate"],
    ],
)
def test_command_that_serves_nothing_executes_no_server(argv: list[str]) -> None:
    assert not _serves(argv)


@pytest.mark.parametrize(
    "argv",
    [
        *(["manage.py", command] for command in sorted(SERVING_COMMANDS)),
        ["/usr/bin/daphne", "gumcp_site.asgi:application"],
        ["/usr/lib/python3/daphne/__main__.py", "gumcp_site.asgi:application"],
        ["/usr/bin/uvicorn", "gumcp_site.asgi:application"],
        ["/usr/bin/gunicorn", "gumcp_site.asgi:application", "migrate"],
        [],
    ],
)
def test_process_that_serves_loads_the_servers(argv: list[str]) -> None:
    assert _serves(argv)


@pytest.mark.parametrize("command", [("migrate", "--verbosity", "0"), ("check",), ("collectstatic", "--noinput")])
def test_command_leaves_server_modules_alone(
    tmp_path: Path, write_server: WriteServer, command: tuple[str, ...]
) -> None:
    directory, marker = write_server("marking", MARKER), tmp_path / "executed"
    done = manage(*command, data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory), MARKER=str(marker))
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_server_directories_are_a_path_list_with_relative_paths_from_the_projects_root(
    tmp_path: Path, write_server: WriteServer
) -> None:
    directory = write_server("sound")
    done = manage("list_servers", "--json", data_dir=tmp_path, GUMCP_SERVER_DIRS=f"{directory}:servers")
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)]
    assert names[0] == "sound"
    assert {"simple-tools-server", "time"} <= set(names[1:])


def test_servers_are_registered_when_django_is_ready() -> None:
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
