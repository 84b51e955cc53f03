"""`manage.py prepare_servers`, beside an installer that tests write. With a real one: `matrix.served`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from gateway.management.commands import prepare_servers
from tests.support.server_folders import WriteServer

Prepare = Callable[[Path, Path], Path]
Run = Callable[..., str]


def nothing_to_prepare(folder: Path, environments: Path) -> Path:
    raise AssertionError(f"an environment was made for {folder.name}")


@pytest.fixture
def folders(write_server: WriteServer) -> Path:
    """Three servers. One has an environment of its own, and one has packages and runs in the host."""
    directory = write_server("apart")
    for name in ("beside", "plain"):
        write_server(name)
    (directory / "apart" / "server.json").write_text('{"gumcp": {"isolation": "process"}}')
    for name in ("apart", "beside"):
        (directory / name / "requirements.txt").write_text("some-package\n")
    return directory


@pytest.fixture
def run(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command. `prepare` takes the place of what makes an environment."""

    def run_command(
        *names: str, prepare: Callable[[Path, Path], Path] = lambda folder, all_of_them: all_of_them
    ) -> str:
        monkeypatch.setattr(prepare_servers, "prepare", prepare)
        out = StringIO()
        with override_settings(GUMCP_SERVER_DIRS=[folders], GUMCP_DATA_DIR=str(tmp_path)):
            call_command("prepare_servers", *names, stdout=out)
        return out.getvalue()

    return run_command


def test_environments_are_made_for_servers_that_need_one(run: Run, tmp_path: Path) -> None:
    made: list[str] = []

    def prepare(folder: Path, environments: Path) -> Path:
        made.append(folder.name)
        return environments / f"{folder.name}-1234"

    assert run(prepare=prepare) == f"apart: ready in {tmp_path / 'environments' / 'apart-1234'}\n"
    assert made == ["apart"]


def test_named_server_that_needs_none_is_told(run: Run) -> None:
    assert run("beside") == "beside: needs no environment (isolation: process, requirements.txt)\n"


def test_nothing_to_do_is_said(run: Run, folders: Path) -> None:
    (folders / "apart" / "server.json").unlink()
    assert run().startswith("No server needs an environment of its own")


def test_unknown_name_is_refused(run: Run) -> None:
    with pytest.raises(CommandError, match="There is no server called nowhere"):
        run("apart", "nowhere")


def test_installer_that_fails_is_told_with_its_last_lines(run: Run) -> None:
    def fail(folder: Path, environments: Path) -> Path:
        lines = "\n".join(f"line {number}" for number in range(1, 8))
        raise subprocess.CalledProcessError(1, "pip", stderr=lines)

    with pytest.raises(CommandError) as refused:
        run(prepare=fail)
    assert str(refused.value) == (
        "apart: its requirements could not be installed:\n  line 3\n  line 4\n  line 5\n  line 6\n  line 7"
    )


def test_manifest_that_cannot_be_used_is_told(run: Run, folders: Path) -> None:
    (folders / "apart" / "server.json").write_text("{")
    with pytest.raises(CommandError, match=r"apart: The file is not JSON \(line 1\)"):
        run()
