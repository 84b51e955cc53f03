from gateway.http.slow_readers import SlowReaderRule


def rule() -> SlowReaderRule:
    return SlowReaderRule(seconds=30, buffer_bytes=1000)


def test_client_that_takes_nothing_breaks_the_rule_when_its_time_is_up() -> None:
    slow = rule()
    assert [slow.is_broken(now, taken_bytes=0, waiting_bytes=5000) for now in (0, 29, 30)] == [False, False, True]


def test_client_that_takes_a_buffer_in_time_has_its_time_again() -> None:
    slow = rule()
    assert not slow.is_broken(0, taken_bytes=0, waiting_bytes=5000)
    assert not slow.is_broken(29, taken_bytes=1000, waiting_bytes=4000)
    assert not slow.is_broken(58, taken_bytes=1999, waiting_bytes=3001)
    assert slow.is_broken(59, taken_bytes=1999, waiting_bytes=3001)


def test_client_must_take_everything_if_less_than_a_buffer_waits() -> None:
    slow = rule()
    assert not slow.is_broken(0, taken_bytes=0, waiting_bytes=10)
    assert slow.is_broken(30, taken_bytes=9, waiting_bytes=1)


def test_empty_end_of_a_response_must_be_taken_too() -> None:
    slow = rule()
    assert not slow.is_broken(0, taken_bytes=7, waiting_bytes=0)
    assert slow.is_broken(30, taken_bytes=7, waiting_bytes=0)


def test_client_for_whom_nothing_waits_starts_over() -> None:
    slow = rule()
    assert not slow.is_broken(0, taken_bytes=0, waiting_bytes=5000)
    slow.forget()
    assert not slow.is_broken(31, taken_bytes=0, waiting_bytes=5000)
