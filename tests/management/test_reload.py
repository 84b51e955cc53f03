"""`manage.py reload`, beside a host whose rows a test writes. With a real host: `e2e.test_reload`."""

import itertools
from collections.abc import Callable
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from gateway.management.commands import reload
from gateway.records.models import HostProcess, ServerRecord

pytestmark = pytest.mark.django_db

CarryOut = Callable[[], None]


def make_host() -> HostProcess:
    now = timezone.now()
    return HostProcess.objects.create(id=uuid4(), hostname="here", pid=1, started_at=now, last_seen_at=now)


def write_row(name: str, status: str = "loaded", reason: str = "") -> None:
    ServerRecord.objects.update_or_create(
        folder=f"/s/{name}", defaults={"name": name, "status": status, "reason": reason, "loaded_at": timezone.now()}
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, int]]:
    """Run the command beside one host, which does `carry_out` while the command waits. Return output and status."""
    host = make_host()

    def run_command(*arguments: str, carry_out: CarryOut = lambda: None) -> tuple[str, int]:
        def host_works(seconds: float) -> None:
            carry_out()
            host.refresh_from_db()
            HostProcess.objects.filter(id=host.id).update(looked_at=host.look_requested_at)

        monkeypatch.setattr(reload.time, "sleep", host_works)
        out, status = StringIO(), 0
        try:
            call_command("reload", *arguments, stdout=out)
        except SystemExit as error:
            status = int(str(error.code))
        return out.getvalue(), status

    return run_command


def requested() -> set[str]:
    return set(ServerRecord.objects.exclude(reload_requested_at=None).values_list("name", flat=True))


def test_new_and_removed_folders_are_told(run: Callable[..., tuple[str, int]]) -> None:
    write_row("old")
    write_row("same")

    def carry_out() -> None:
        write_row("new")
        write_row("old", "removed")

    gone = "there is no folder of this name with a main.py or server.json"
    assert run(carry_out=carry_out) == (f"new: served\nold: {gone}\n", 0)
    assert run() == ("Nothing has changed: 2 servers.\n", 0)
    assert not requested()


def test_named_server_is_reloaded_and_told_also_if_nothing_has_changed(run: Callable[..., tuple[str, int]]) -> None:
    write_row("weather")
    write_row("time")
    assert run("weather") == ("weather: reloaded\n", 0)
    assert requested() == {"weather"}
    run("--all")
    assert requested() == {"weather", "time"}


def test_server_that_failed_is_tried_again(run: Callable[..., tuple[str, int]]) -> None:
    write_row("broken", "failed", "In main.py, line 1: ValueError")
    write_row("half", "loaded", "In main.py, line 2: ValueError")
    write_row("weather", "near miss", "It has server.py, but no main.py.")
    assert run(carry_out=lambda: write_row("broken")) == ("broken: reloaded\n", 0)
    assert requested() == {"broken", "half"}


@pytest.mark.parametrize(
    ("name", "row", "output"),
    [
        ("new", ("failed", "In main.py, line 1: ValueError"), "new: not served. In main.py, line 1: ValueError\n"),
        (
            "weather",
            ("loaded", "In a.py, line 1: E"),
            "weather: its new code does not load, the old one is still served.",
        ),
        ("shop", ("near miss", "It has server.py."), "shop: not served. It has server.py.\n"),
        ("nowhere", ("removed", ""), "nowhere: there is no folder of this name with a main.py or server.json\n"),
    ],
)
def test_server_that_does_not_load_is_told_with_its_reason_and_exit_status_1(
    run: Callable[..., tuple[str, int]], name: str, row: tuple[str, str], output: str
) -> None:
    write_row("weather")
    told, status = run(name, carry_out=lambda: write_row(name, *row))
    assert told.startswith(output)
    assert status == 1


def test_new_near_miss_is_told_and_is_no_error(run: Callable[..., tuple[str, int]]) -> None:
    told = run(carry_out=lambda: write_row("shop", "near miss", "It has server.py."))
    assert told == ("shop: not served. It has server.py.\n", 0)


def test_command_without_a_running_host_says_so() -> None:
    with pytest.raises(CommandError, match="No host runs with this database"):
        call_command("reload")


def test_host_that_does_not_finish_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    make_host()
    times = itertools.count(step=20)
    monkeypatch.setattr(reload.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(reload.time, "sleep", lambda seconds: None)
    with pytest.raises(CommandError, match="The host has not finished after"):
        call_command("reload")
