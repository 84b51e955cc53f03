"""Rows of who ran into a limit."""

import pytest

from gateway.access.limit_hits import write_refusals
from gateway.access.limits import Refusals
from gateway.access.models import LimitHit

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("subject", ["no\0address", "\udcff", "a" * 1000])
def test_subject_that_databases_refuse_is_written_in_escapes_and_counted_in_one_row(subject: str) -> None:
    for _ in range(2):
        write_refusals({("failed keys", subject): Refusals(3, 100.0, 4_000_000_000.0)})
    hit = LimitHit.objects.get()
    hit.clean_fields()
    assert hit.count == 6
    assert "\0" not in hit.subject
