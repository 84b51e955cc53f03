"""Rows of who ran into a limit."""

import pytest
from django.db import OperationalError

from gateway.access import limit_hits
from gateway.access.limit_hits import write_refusals
from gateway.access.limits import RateLimits
from gateway.access.models import LimitHit

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("subject", ["no\0address", "\udcff", "a" * 1000])
def test_subject_that_databases_refuse_is_written_in_escapes_and_counted_in_one_row(subject: str) -> None:
    limits = RateLimits({})
    for _ in range(2):
        for _ in range(3):
            limits.note_refusal("failed keys", subject)
        write_refusals(limits)
    hit = LimitHit.objects.get()
    hit.clean_fields()
    assert hit.count == 6
    assert "\0" not in hit.subject


def test_what_could_not_be_written_is_written_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = RateLimits({})
    for subject in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        limits.note_refusal("failed keys", subject)

    def fail() -> None:
        raise OperationalError("database or disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(limit_hits, "_forget_old", fail)
        with pytest.raises(OperationalError):
            write_refusals(limits)
    assert not LimitHit.objects.exists()
    limits.note_refusal("failed keys", "192.0.2.1")
    write_refusals(limits)
    assert dict(LimitHit.objects.values_list("subject", "count")) == {"192.0.2.1": 3, "192.0.2.2": 1}
