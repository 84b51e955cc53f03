"""What `manage.py serve` refuses before it serves. What it does then: `test_commands`."""

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "argument --port: must be a whole number from 1 to 65535 (got '99999')"),
        (["--port", "http"], "argument --port: must be a whole number from 1 to 65535 (got 'http')"),
        (["--host", "no..host"], "argument --host: must be an address or host name without a port"),
        (["--host", "0.0.0.0"], "would listen on 0.0.0.0"),
    ],
)
def test_serve_refuses_wrong_options_with_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("serve", *arguments)
    assert sentence in str(raised.value)


@override_settings(GUMCP_METRICS_PORT=18_000)
def test_serve_refuses_one_port_for_clients_and_metrics() -> None:
    with pytest.raises(CommandError, match="GUMCP_PORT and GUMCP_METRICS_PORT are both 18000"):
        call_command("serve", "--port", "18000")
