"""What the rows of servers say of folders that are not served."""

from pathlib import Path

import pytest
from django.contrib.auth.models import User

from gateway.catalog.definitions import Discovery, LoadFailure, NearMiss
from gateway.catalog.registry import Registry
from gateway.instances.listings import Listings
from gateway.records.models import ServerRecord
from gateway.records.recorder import Recorder
from gateway.transports.sessions import Sessions
from tests.support.logged_in import browser

pytestmark = pytest.mark.django_db

HINT = "It has server.py, but no main.py."


@pytest.fixture
def registry() -> Registry:
    failure = LoadFailure("broken", Path("/s/broken"), "In main.py, line 1: ValueError", "Traceback of it")
    return Registry(Discovery([], [failure], [NearMiss("weather", Path("/s/weather"), HINT)]))


@pytest.fixture
def recorder(registry: Registry) -> Recorder:
    return Recorder(registry, Sessions(), [], Listings())


def test_near_miss_is_a_row_with_its_hint_until_it_is_gone(registry: Registry, recorder: Recorder) -> None:
    recorder._flush(is_last=False)
    rows = {row.name: (row.status, row.reason) for row in ServerRecord.objects.all()}
    assert rows == {"broken": ("failed", "In main.py, line 1: ValueError"), "weather": ("near miss", HINT)}
    registry.replace_near_misses([])
    recorder._flush(is_last=False)
    assert ServerRecord.objects.get(name="weather").status == "removed"


def test_near_miss_and_traceback_are_shown_in_the_admin(recorder: Recorder) -> None:
    recorder._flush(is_last=False)
    client = browser(User.objects.create_superuser("root"))
    page = client.get("/admin/records/serverrecord/").content.decode()
    assert HINT in page
    assert "Not a server" in page
    broken = ServerRecord.objects.get(name="broken")
    assert "Traceback of it" in client.get(f"/admin/records/serverrecord/{broken.pk}/change/").content.decode()
