import asyncio
import gc
import io
import logging
import time
from collections.abc import Iterator
from urllib.parse import quote, unquote

import pytest

from gateway.access.identity import Identity, current_identity
from gateway.access.log_redaction import install_record_redaction
from gateway.access.redaction import MAX_KEPT_LENGTH, MAX_KEPT_PATHS, REDACTED, PathRedactor, redact
from gateway.printable import Lines

REDACTOR = PathRedactor(["workshop", "simple-tools-server"])


@pytest.mark.parametrize(
    "text",
    [
        'GET /workshop/ada:canary HTTP/1.1" 200',
        "/workshop/ada%3Acanary/messages/?session_id=1",
        "/workshop/canary",
        "/workshop/canary/",
        "/simple-tools-server/canary:canary",
        "http://127.0.0.1:8000/workshop/ada:canary",
        "Not Found: /unknown/ada:canary",
        "/unknown/ada%3acanary/messages",
        "//workshop/ada:canary",
        "two: /workshop/a:canary and /workshop/b:canary",
        "/workshop/ada:canary:canary",
        "/workshop/ada:100%25canary",
        "/workshop/ada:key/messages/?session_id=canary",
        "/workshop/ada:key/messages/?x=1&session_id=canary&y=2",
        "took too long: <HTTPRequest path=/workshop/ada:canary>",
    ],
)
def test_key_and_session_id_are_taken_out_of_any_text(text: str) -> None:
    assert "canary" not in REDACTOR(text)
    assert REDACTED in REDACTOR(text)


@pytest.mark.parametrize(
    "path",
    [
        "/unknown/canary",
        "/workshop/canary/messages",
        "/x/canary?session_id=canary",
        # The name of the server was left out, or something else stands for the slash after it.
        "/ada:canary",
        "/ada%3Acanary",
        "//ada:canary/x",
        "/workshop\\ada:canary",
        "/workshop%2Fada:canary",
    ],
)
def test_second_segment_of_a_requests_path_is_a_key_whatever_it_looks_like(path: str) -> None:
    assert "canary" not in REDACTOR.path(path)


@pytest.mark.parametrize(
    "text",
    [
        "Discovered 3 servers",
        'File "/srv/gumcp/gateway/host.py", line 12',
        "/srv/app/main.py:12: DeprecationWarning",
        "New SSE connection requested for workshop with session: ada",
        "10/20/30",
        "",
    ],
)
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert REDACTOR(text) == text


@pytest.mark.parametrize("path", ["/admin/records/sessionrecord/", "/static/admin/css/base.css", "/health_check", "/"])
def test_paths_of_djangos_own_pages_are_left_as_they_are(path: str) -> None:
    assert REDACTOR.path(path) == path


def test_server_and_shape_of_a_url_stay_readable() -> None:
    text = REDACTOR("/workshop/ada:canary/messages/?session_id=canary")
    assert text == f"/workshop/{REDACTED}/messages/?session_id={REDACTED}"


def test_redactor_of_no_servers_works() -> None:
    assert "canary" not in PathRedactor([])("/unknown/ada:canary")


def test_known_secrets_are_taken_out_and_short_ones_left() -> None:
    assert redact("a canary-key b canary-key", "canary-key", None, "") == f"a {REDACTED} b {REDACTED}"
    assert redact("abc", "abc") == "abc"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What a handler of somebody else's writes while records are redacted."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("somebody")
    factory = logging.getLogRecordFactory()
    logger.addHandler(handler)
    install_record_redaction(REDACTOR)
    yield stream
    logging.setLogRecordFactory(factory)
    logger.removeHandler(handler)


def test_every_log_record_is_redacted_whoever_writes_it(output: io.StringIO) -> None:
    logger = logging.getLogger("somebody")
    logger.warning("plain /workshop/ada:canary")
    logger.warning("argument %s of %d", "/workshop/ada:canary", 5)
    logger.warning("object %s", ValueError("/workshop/ada:canary"))
    try:
        raise ValueError("/workshop/ada:canary")
    except ValueError:
        logger.exception("with a traceback")
    written = output.getvalue()
    assert "canary" not in written
    assert "argument" in written
    assert "of 5" in written
    assert "Traceback" in written


def test_installing_twice_is_the_same_as_once(output: io.StringIO) -> None:
    factory = logging.getLogRecordFactory()
    install_record_redaction(REDACTOR)
    assert logging.getLogRecordFactory() is factory


def test_named_arguments_are_redacted_too(output: io.StringIO) -> None:
    logging.getLogger("somebody").warning("named %(path)s", {"path": "/workshop/ada:canary"})
    assert "canary" not in output.getvalue()


PUBLIC = "gumcp_Ab3dE6gH"
ISSUED = f"{PUBLIC}_{'x' * 49}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET /workshop/ada:{ISSUED} HTTP/1.1", f"GET /workshop/[{PUBLIC}] HTTP/1.1"),
        (f"/workshop/ada%3A{ISSUED}/messages/?session_id=1", f"/workshop/[{PUBLIC}]/messages/?session_id={REDACTED}"),
        (f"/unknown/ada:{ISSUED}", f"/unknown/[{PUBLIC}]"),
        (f"the key {ISSUED} and {ISSUED[:-3]}", f"the key {PUBLIC} and {PUBLIC}"),
        (f"next=%2Fworkshop%2Fada%3A{ISSUED}&x=1", f"next=%2Fworkshop%2F[{PUBLIC}]&x=1"),
        ("next=%2Fworkshop%2Fcanary", f"next=%2Fworkshop%2F{REDACTED}"),
        ("Authorization: Bearer canary", f"Authorization: {REDACTED}"),
        (
            "(b'authorization', b'Bearer canary'), (b'host', b'x')",
            f"(b'authorization', b'{REDACTED}'), (b'host', b'x')",
        ),
        ("{'Cookie': 'sessionid=canary; csrftoken=canary'}", f"{{'Cookie': '{REDACTED}'}}"),
        ("sent bearer canary-canary there", f"sent bearer {REDACTED} there"),
        ("/?api_key=canary&x=1", f"/?api_key={REDACTED}&x=1"),
        ("{'path': '/nowhere/canary', 'raw_path': b'/nowhere/canary'}", None),
    ],
)
def test_issued_keys_become_their_public_part_and_credentials_go(text: str, shown: str | None) -> None:
    redacted = REDACTOR(text)
    assert "canary" not in redacted
    assert ISSUED not in redacted
    assert shown is None or redacted == shown
    assert REDACTOR(redacted) == redacted


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (f"/workshop/ada:{ISSUED}", f"/workshop/[{PUBLIC}]"),
        (
            "/workshop/ada:a/canary/b/messages/?session_id=canary",
            f"/workshop/{REDACTED}/messages/?session_id={REDACTED}",
        ),
        ("/workshop/..//:canary", f"/workshop/{REDACTED}"),
        ("/admin/ada:x/canary", f"/admin/{REDACTED}"),
        ("/admin/records/sessionrecord/?q=1", "/admin/records/sessionrecord/?q=1"),
    ],
)
def test_decoded_paths_of_requests_keep_their_shape_and_no_key(path: str, shown: str) -> None:
    assert REDACTOR.path(path) == shown
    assert REDACTOR.path(shown) == shown


def test_callers_key_is_taken_out_of_what_is_logged_for_them(output: io.StringIO) -> None:
    token = current_identity.set(Identity("ada", "any-key-at-all"))
    logging.getLogger("somebody").warning("called with %s and %s", "any-key-at-all", ["any-key-at-all"])
    try:
        raise ValueError("no any-key-at-all")
    except ValueError:
        logging.getLogger("somebody").exception("failed")
    current_identity.reset(token)
    assert "any-key-at-all" not in output.getvalue()
    assert "ValueError" in output.getvalue()


@pytest.mark.parametrize("name", ["mcp.somewhere", "asyncio", "gateway.compat.server", "gateway.instances.lanes"])
def test_errors_of_servers_handlers_keep_frames_and_types_only(output: io.StringIO, name: str) -> None:
    logger = logging.getLogger(name)
    handler = logging.StreamHandler(output)
    logger.addHandler(handler)
    try:
        try:
            int("an argument")
        except ValueError as error:
            raise ExceptionGroup("several: an argument", [KeyError("an argument"), error]) from error
    except ExceptionGroup:
        logger.exception("handler raised")
    logger.removeHandler(handler)
    written = output.getvalue()
    for part in (
        "handler raised",
        "ValueError: [its text",
        "ExceptionGroup: [its text",
        "KeyError: [its text",
        "line ",
    ):
        assert part in written
    assert "direct cause" in written
    assert written.count("an argument") == written.count('int("an argument")') + written.count('("several: an arg') + (
        written.count('KeyError("an argument")')
    )


def test_task_that_a_handler_left_behind_is_told_of_without_what_its_error_says(output: io.StringIO) -> None:
    async def left_behind(argument: str) -> None:
        raise ValueError(f"no such <{argument}>")

    async def handle() -> None:
        await asyncio.wait([asyncio.ensure_future(left_behind("canary"))])

    logger = logging.getLogger("asyncio")
    handler = logging.StreamHandler(output)
    logger.addHandler(handler)
    asyncio.run(handle())
    gc.collect()
    logger.removeHandler(handler)
    written = output.getvalue()
    assert "Task exception was never retrieved" in written
    assert "left_behind" in written
    assert "ValueError" in written
    assert "canary" not in written


def encode(text: str, times: int = 1, only: str = "") -> str:
    """Percent-encode each character of `text`, or those in `only`, several times over."""
    for _ in range(times):
        text = "".join(f"%{ord(each):02x}" if not only or each in only else each for each in text)
    return text


ENCODED_KEYS = [
    pytest.param(ISSUED.replace("_", "%5F"), id="underscore, capitals"),
    pytest.param(ISSUED.replace("_", "%5f"), id="underscore, small letters"),
    pytest.param(ISSUED.replace("_", "%255F"), id="underscore, twice"),
    pytest.param(ISSUED.replace("_", "%%35F"), id="the escape itself in part"),
    pytest.param(f"%67{ISSUED[1:]}", id="first letter"),
    pytest.param(f"{ISSUED[:-1]}%78", id="last letter"),
    pytest.param(encode(ISSUED), id="each character"),
    pytest.param(encode(ISSUED, 3), id="each character, three times"),
    pytest.param(encode(ISSUED, 6, only="_%"), id="more often than anybody decodes"),
]


@pytest.mark.parametrize("key", ENCODED_KEYS)
@pytest.mark.parametrize(
    "around", ["{}", "/{}", "/?x={}", "/x/y/z/{}", "GET /{} HTTP/1.1", "a {} b", "next={}&x=1", "https://h/%7E/{}/"]
)
def test_encoded_key_is_taken_out_wherever_it_stands(key: str, around: str) -> None:
    text = around.format(key)
    for redacted in (REDACTOR(text), REDACTOR.path(text)):
        decoded = redacted
        for _ in range(10):
            decoded = unquote(decoded, "latin-1")
            assert ISSUED[len(PUBLIC) + 1 :] not in decoded
        assert REDACTOR(redacted) == redacted


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/workshop%2Fada:canary", f"/workshop/{REDACTED}"),
        ("/workshop%2fcanary", f"/workshop/{REDACTED}"),
        ("/unknown%252Fcanary%2Fmessages", f"/unknown/{REDACTED}"),
        ("/x/y?session%5Fid=a%2522canary", f"/x/{REDACTED}?session_id={REDACTED}"),
        ("/admin/ada%253Acanary", f"/admin/{REDACTED}"),
        ("/%61dmin/canary", f"/%61dmin/{REDACTED}"),
        ("/x/y?session%5Fid=canary&z=1", f"/x/{REDACTED}?session_id={REDACTED}&z=1"),
        ("/?%61pi%5fkey=canary", f"/?api_key={REDACTED}"),
        ("/?next=%2Fworkshop%252Fcanary", f"/?next=/workshop/{REDACTED}"),
        ("/workshop%2525252525252Fcanary", f"/{REDACTED}"),
        ("/%0Aworkshop/canary", f"/%0Aworkshop/{REDACTED}"),
        ("/workshop%2Fcanary%0AERROR", f"/workshop/{REDACTED}"),
        ("/time\x85\u202e", "/time\\x85\\u202e"),
    ],
)
def test_encoded_path_is_read_as_a_reader_of_the_log_might(path: str, shown: str) -> None:
    assert REDACTOR.path(path) == shown
    assert REDACTOR.path(shown) == shown


def test_paths_that_are_kept_are_bounded_hold_no_secret_and_follow_new_servers() -> None:
    redactor = PathRedactor([])
    path = "/workshop/read.py"
    for number in range(2 * MAX_KEPT_PATHS):
        assert "canary" not in redactor.path(f"/workshop/ada:canary-{number}/messages/?session_id=canary")
    redactor.path("/x/" + "y" * 10_000 + "?" + "z" * 10_000)
    assert redactor.path(path) == redactor.path(path) == f"/workshop/{REDACTED}"
    assert 0 < len(redactor._shown) <= MAX_KEPT_PATHS
    assert "canary" not in str(redactor._shown)
    assert max(map(len, redactor._shown.values())) <= MAX_KEPT_LENGTH
    redactor.learn(["workshop"])
    assert not redactor._shown


def test_decoding_forges_no_line(output: io.StringIO) -> None:
    logging.getLogger("somebody").warning("%s", f"/x%0A2026-01-01 ERROR%0d{encode(ISSUED)}")
    assert output.getvalue().count("\n") == 1
    assert "\r" not in output.getvalue()


def test_callers_key_is_taken_out_in_the_form_it_has_in_a_url() -> None:
    key = "pass word/ü:1"
    for form in (key, quote(key), quote(key, safe="")):
        assert redact(f"a {form} b", key) == f"a {REDACTED} b"


def test_long_text_is_redacted_in_linear_time() -> None:
    started = time.monotonic()
    for text in (
        "%25" * 100_000,
        "%41" * 100_000,
        "x" * 300_000 + " %41",
        "/workshop/" * 20_000 + "%41",
        "?&" * 100_000 + "%41",
    ):
        REDACTOR(text)
        REDACTOR.path(text)
    assert time.monotonic() - started < 20


# -- Control and format characters -----------------------------------------------------------------------------------

FORGED = "laptop\n2026-01-01 00:00:00 WARNING forged\u2028\u202emirrored\x1b[31m\u200e\x00"


def test_argument_of_a_log_record_forges_no_line(output: io.StringIO) -> None:
    logger = logging.getLogger("somebody")
    logger.warning("Audit: %s", FORGED)
    logger.warning("Audit: %(label)s", {"label": FORGED})
    logger.warning("Audit: %s", ValueError(FORGED))
    written = output.getvalue()
    assert written.count("\n") == 3
    assert not set(written) & {"\u2028", "\u202e", "\x1b", "\u200e", "\x00", "\r"}
    assert r"laptop\n2026" in written


def test_texts_of_several_lines_keep_their_lines_and_nothing_else(output: io.StringIO) -> None:
    logger = logging.getLogger("somebody")
    logger.warning("two\nlines: %s", Lines("three\n\tlines\u202e"))
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed")
    written = output.getvalue()
    assert "two\nlines: three\n\tlines\\u202e" in written
    assert "Traceback (most recent call last):\n" in written
    assert not set(written) & {"\u2028", "\u202e", "\x1b", "\u200e", "\x00"}
