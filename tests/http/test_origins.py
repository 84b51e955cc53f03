"""Under which names a host answers, and which web pages may call it."""

import json
from typing import Any

import pytest

from gateway.http.origins import OriginPolicy

PAGE = "https://app.example.com"
POLICY = OriginPolicy(["mcp.example.com", "localhost"], [PAGE])


async def refusal(*headers: tuple[str, str]) -> tuple[int, str] | None:
    """The status and reason with which a request is refused; None if it is let through."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}
    if not await POLICY.refuse_foreign(scope, send):
        assert not sent
        return None
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


HOST = ("host", "mcp.example.com")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("origin", PAGE)],
        [("origin", "https://mcp.example.com")],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "none")],
        [("origin", PAGE), ("sec-fetch-site", "cross-site")],
        [("origin", PAGE), ("sec-fetch-site", "same-site")],
        [("referer", f"{PAGE}/chat?with=ada")],
        [("referer", "http://mcp.example.com")],
        [("referer", "https://evil.example/"), ("sec-fetch-site", "none")],
        [("user-agent", "Mozilla/5.0 (X11; Linux x86_64)")],
    ],
)
async def test_request_of_no_page_or_of_an_allowed_one_is_let_through(headers: list[tuple[str, str]]) -> None:
    assert await refusal(HOST, *headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "https://evil.example")],
        [("origin", "null")],
        [("origin", PAGE), ("origin", PAGE)],
        [("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
        # An <img>, a link or a script of another page, which sends no Origin.
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "Cross-Site")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
        # The same from an old browser, or from a new one to a host without TLS.
        [("referer", "https://evil.example/page")],
        [("referer", "https://mcp.example.com.evil.example/")],
        [("referer", "https://mcp.example.com:8443/")],
        [("referer", "https://mcp.example.com@evil.example/")],
        [("referer", "about:blank")],
        [("referer", "")],
    ],
)
async def test_request_of_a_foreign_page_is_refused(headers: list[tuple[str, str]]) -> None:
    refused = await refusal(HOST, *headers)
    assert refused is not None
    assert refused[0] == 403
    assert "GUMCP_ALLOWED_ORIGINS" in refused[1]


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.7:8000", "mcp.example.com.evil.example", ""])
async def test_request_under_a_foreign_name_is_told_what_to_set(host: str) -> None:
    refused = await refusal(("host", host))
    assert refused is not None
    assert refused[0] == 421
    assert "GUMCP_ALLOWED_HOSTS" in refused[1]


@pytest.mark.parametrize("hosts", [[], [HOST, HOST]])
async def test_request_with_no_host_or_several_is_refused(hosts: list[tuple[str, str]]) -> None:
    assert await refusal(*hosts) == (400, "The request must have one Host header.")
