import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from limits.storage import MemoryStorage

from gateway.access import audit, login_throttle
from gateway.access.login_throttle import LoginThrottle
from gateway.access.models import AuditEvent, LimitHit

pytestmark = pytest.mark.django_db

PASSWORD = "operators-password"

WIDE = "\N{FULLWIDTH LATIN SMALL LETTER O}"


class SharedStorage(MemoryStorage):
    """Stands for Redis: it is asked in threads of its own."""

    STORAGE_SCHEME: ClassVar[list[str]] = ["login-tests"]


@pytest.fixture(autouse=True)
def operator() -> User:
    return User.objects.create_superuser("operator", password=PASSWORD)


def log_in(client: Client, password: str, name: str = "operator", address: str = "192.0.2.7") -> int:
    credentials = {"username": name, "password": password}
    return client.post("/admin/login/", credentials, REMOTE_ADDR=address).status_code


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="3 per hour")
def test_right_password_is_refused_too_once_too_many_were_wrong() -> None:
    client = Client()
    assert [log_in(client, "wrong") for _ in range(5)] == [200, 200, 200, 429, 429]
    answer = client.post("/admin/login/", {"username": "operator", "password": PASSWORD}, REMOTE_ADDR="192.0.2.7")
    assert answer.status_code == 429
    assert 3000 < int(answer.headers["Retry-After"]) <= 3601
    # The address is refused, whatever name it tries; the name is not refused elsewhere.
    assert log_in(client, "wrong", name="somebody") == 429
    assert log_in(client, PASSWORD, address="198.51.100.1") == 302
    client.logout()
    assert log_in(client, "wrong", name="somebody", address="198.51.100.1") == 200
    assert client.get("/admin/login/").status_code == 200
    assert LimitHit.objects.filter(rule="failed logins", subject="192.0.2.7").exists()


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="3 per hour")
def test_logins_that_succeed_use_nothing_up() -> None:
    for _ in range(6):
        assert log_in(Client(), PASSWORD) == 302


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="3 per hour")
def test_logins_that_the_database_failed_are_told_so_and_use_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OperationalError("typed-password is no longer here")

    client = Client(raise_request_exception=False)
    with monkeypatch.context() as patch:
        patch.setattr(ModelBackend, "authenticate", fail)
        for _ in range(5):
            answer = client.post("/admin/login/", {"username": "operator", "password": PASSWORD})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
            assert "database" in answer.text
            assert "typed" not in answer.text
            assert "MCP calls do not, and go on." in answer.text
        with override_settings(GUMCP_AUTH="keys"):
            answer = client.post("/admin/login/", {"username": "operator", "password": PASSWORD})
        assert "So do MCP calls where it cannot be read" in answer.text
    assert log_in(client, PASSWORD) == 302


@pytest.mark.parametrize("storage_url", ["memory://", "login-tests://"])
@pytest.mark.parametrize("ending", [200, 302, 503])
def test_attempts_under_way_count_too_until_they_end_well(
    monkeypatch: pytest.MonkeyPatch, storage_url: str, ending: int
) -> None:
    # The rows are other tests' subject: these threads share no transaction.
    monkeypatch.setattr(audit, "record", lambda *arguments, **more: None)
    monkeypatch.setattr(login_throttle, "write_refusals", lambda limits: None)
    monkeypatch.setattr(login_throttle, "has_logged_in_from", lambda name, address: False)
    monkeypatch.setattr(login_throttle, "MAX_STRANGERS", 60)
    # Who gets no answer from the storage in time counts alone, which is not the subject here.
    monkeypatch.setattr("gateway.access.limits.ANSWER_SECONDS", 30)
    happened: queue.Queue[str] = queue.Queue()
    may_end = threading.Event()

    def view(request: HttpRequest) -> HttpResponse:
        happened.put("let in")
        assert may_end.wait(30)
        return HttpResponse(status=ending)

    # Ten for strangers under one name.
    with override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour", GUMCP_LIMITS_STORAGE_URL=storage_url):
        throttle = LoginThrottle(view)

    def attempt(number: int) -> int:
        # One name from everywhere: what is counted is not the address alone.
        request = RequestFactory().post("/admin/login/", {"username": "operator"}, REMOTE_ADDR=f"192.0.2.{number}")
        status = int(throttle(request).status_code)
        if status == 429:
            happened.put("refused")
        return status

    with ThreadPoolExecutor(60) as threads:
        attempts = [threads.submit(attempt, number) for number in range(60)]
        first = [happened.get(timeout=30) for _ in range(60)]
        may_end.set()
        statuses = [done.result(30) for done in attempts]
        assert (first.count("let in"), statuses.count(429)) == (10, 50)
        # What did not fail has used nothing up.
        assert [attempt(number) for number in range(11)].count(429) == (11 if ending == 200 else 0)
    throttle._limits.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_strangers_make_the_host_check_few_passwords_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """A check takes a second of a processor. Many addresses could keep all threads busy with it."""
    monkeypatch.setattr(login_throttle, "MAX_STRANGERS", at_once)
    monkeypatch.setattr(audit, "record", lambda *arguments, **more: None)
    monkeypatch.setattr(login_throttle, "has_logged_in_from", lambda name, address: address == "192.0.2.200")
    begun, may_end = threading.Semaphore(0), threading.Event()

    def view(request: HttpRequest) -> HttpResponse:
        begun.release()
        assert may_end.wait(30)
        return HttpResponse(status=200)

    throttle = LoginThrottle(view)

    def attempt(number: int) -> HttpResponse:
        names = {"username": f"name-{number}"}
        return throttle(RequestFactory().post("/admin/login/", names, REMOTE_ADDR=f"192.0.2.{number}"))

    with ThreadPoolExecutor(4) as threads:
        strangers = [threads.submit(attempt, number) for number in range(at_once)]
        assert all(begun.acquire(timeout=30) for _ in strangers)
        refused = attempt(2)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        known = threads.submit(attempt, 200)
        assert begun.acquire(timeout=30)
        may_end.set()
        assert [done.result(30).status_code for done in (*strangers, known)] == [200] * (at_once + 1)
        # Who was refused has used nothing up, and there is room again.
        assert attempt(2).status_code == 200
        # A client that leaves before its answer keeps the room for a while only.
        may_end.clear()
        monkeypatch.setattr(login_throttle, "FORGOTTEN_SECONDS", 0)
        leaving = [threads.submit(attempt, number) for number in range(3, 6)]
        assert all(begun.acquire(timeout=30) for _ in leaving)
        may_end.set()
    throttle._limits.close()


def guess_from_everywhere(client: Client) -> None:
    for number in range(10):
        assert log_in(client, "wrong", address=f"203.0.113.{number}") == 200


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour")
def test_name_is_counted_as_one_however_the_login_form_lets_it_be_written() -> None:
    client = Client()
    ways = ("operator ", "\u3000operator", f"{WIDE}perator", "operator", f" {WIDE}perator\t") * 3
    statuses = [log_in(client, "wrong", name=name, address=f"192.0.2.{number}") for number, name in enumerate(ways)]
    assert statuses == [200] * 10 + [429] * 5
    assert log_in(client, PASSWORD, name=f"{WIDE}perator", address="198.51.100.1") == 429
    assert log_in(client, "wrong", name="operators", address="198.51.100.1") == 200


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour")
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_guesses_from_everywhere_do_not_lock_out_an_operator_at_an_address_known_for_the_name(
    before: str, now: str
) -> None:
    client = Client()
    assert log_in(client, PASSWORD, address=before) == 302
    client.logout()
    guess_from_everywhere(client)
    assert log_in(client, PASSWORD, address="198.51.100.1") == 429
    assert log_in(client, PASSWORD, address=now) == 302
    # An address that is known for one name is not known for another.
    AuditEvent.objects.filter(action="logged in").update(actor="second")
    assert log_in(client, PASSWORD, address=now) == 429


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour")
def test_known_address_that_guesses_itself_is_refused() -> None:
    client = Client()
    assert log_in(client, PASSWORD) == 302
    assert log_in(client, "wrong") == 200
    assert log_in(client, PASSWORD) == 429


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour")
def test_site_that_moves_through_its_networks_is_refused_after_four_limits() -> None:
    addresses = [f"2001:db8:1:{number:x}::1" for number in range(8)]
    client = Client()
    statuses = [log_in(client, "wrong", name=f"name{address}", address=address) for address in addresses]
    assert statuses == [200] * 4 + [429] * 4


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="1 per hour")
def test_attempts_under_a_name_that_is_refused_use_up_nothing_of_their_address() -> None:
    client = Client()
    guess_from_everywhere(client)
    for _ in range(5):
        assert log_in(client, "wrong", address="198.51.100.1") == 429
    assert log_in(client, "wrong", name="somebody", address="198.51.100.1") == 200


@override_settings(GUMCP_LIMIT_FAILED_LOGINS="2 per hour")
def test_nothing_that_was_typed_is_kept() -> None:
    client = Client()
    for _ in range(4):
        log_in(client, "typed-password", name="typed-name")
    log_in(Client(), PASSWORD, address="198.51.100.1")
    kept = [*AuditEvent.objects.all(), *LimitHit.objects.all()]
    assert [event.action for event in AuditEvent.objects.order_by("id")] == ["login failed"] * 2 + ["logged in"]
    assert kept
    assert not any("typed" in str(vars(row)) for row in kept)
