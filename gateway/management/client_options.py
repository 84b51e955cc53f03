"""Options that `call`, `inspect` and `run_stdio` share. Importing this does not import the SDK."""

from argparse import ArgumentParser
from typing import Final

HANDSHAKE: Final = "2025-11-25"
STATELESS: Final = "2026-07-28"


def add_protocol_option(parser: ArgumentParser) -> None:
    """Let the command line choose the protocol version."""
    parser.add_argument(
        "--protocol",
        choices=[HANDSHAKE, STATELESS],
        default=HANDSHAKE,
        help="the protocol version that the client speaks (%(default)s)",
    )


def add_user_option(parser: ArgumentParser) -> None:
    """Let the command line say for whom the server is run."""
    parser.add_argument(
        "--user-id",
        default="local",
        help="for whom to make the instance (%(default)s; the key, if any: GUMCP_API_KEY in the environment)",
    )
