"""`manage.py doctor URL`: try what each MCP client does against a running host, and name what is in the way."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError

FROM_STANDARD_INPUT: Final = "-"


class Command(BaseCommand):
    """Prints a line for each client and check, and exits with 1 if one of them has a fault."""

    help = (
        "Play the handshakes of MCP clients against a running host, over the network, and check what proxies break. "
        "Exit status 1 if there is a fault."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("url", help="the address that clients use: of the host, of a server, or with a key")
        parser.add_argument("--key", help=f"the key to call with; {FROM_STANDARD_INPUT} reads it from standard input")
        parser.add_argument("--server", metavar="NAME", help="the server to use (the first one)")
        parser.add_argument("--user-id", help="whose key it is, for clients that have the key in their URL")
        parser.add_argument("--origin", help="the web page whose preflight is tried (the host's own)")
        parser.add_argument(
            "--wait", type=_seconds, default=10.0, metavar="SECONDS", help="longest wait for an answer (%(default)g)"
        )
        parser.add_argument(
            "--silence",
            type=_seconds,
            default=30.0,
            metavar="SECONDS",
            help="longest silence that an event stream may have (%(default)g); 0 does not wait for it",
        )
        parser.add_argument("--json", action="store_true", help="print a JSON list")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: --help does without an HTTP client.
        from gateway.console.doctor.examination import Request, examine
        from gateway.console.doctor.findings import REMEDIES, Finding

        if options["wait"] <= 0:
            raise CommandError("--wait must be more than 0 seconds.")
        key = options["key"]
        request = Request(
            url=_address(options["url"]),
            key=sys.stdin.readline().strip() if key == FROM_STANDARD_INPUT else key,
            server=options["server"],
            user_id=options["user_id"],
            origin=options["origin"],
            patience_seconds=options["wait"],
            silence_seconds=options["silence"],
        )
        findings: list[Finding] = []
        for finding in examine(request):
            findings.append(finding)
            if not options["json"]:
                self.stdout.write(f"{finding.status:<8}{finding.subject:<30}{finding.seen}")
                self.stdout.flush()  # the next one may take half a minute
        causes = list(dict.fromkeys(finding.cause for finding in findings if finding.cause is not None))
        if options["json"]:
            facts = [
                {"subject": it.subject, "status": it.status, "seen": it.seen, "cause": it.cause} for it in findings
            ]
            self.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False))
        else:
            for cause in causes:
                self.stdout.write(f"\nCause: {cause}. {REMEDIES[cause]}")
            if not causes:
                self.stdout.write("\nNo faults.")
        if causes:
            raise SystemExit(1)


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or parts.username:
        # The URL is not repeated: it may have a key in it.
        raise CommandError("URL is an address such as https://mcp.example.com, or that of a server below it.")
    return text.rstrip("/")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ArgumentTypeError(f"a number of seconds from 0 to 3600, not {text}")
    return seconds
