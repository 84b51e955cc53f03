"""One server that is run from the shell for one user, without a host: `call` and `run_stdio`.

Lives here: finding the two, and what becomes of what the server's own code prints, logs and raises. Not here: what is
done with the instance (the commands).
"""

import logging
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from gateway.access.identity import Identity, current_identity, parse_user_id
from gateway.access.redaction import PathRedactor, install_record_redaction, redact
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.standard_streams import stdout_on_stderr
from gateway.conf import conf
from gateway.exceptions import GatewayError


def add_user_argument(parser: ArgumentParser) -> None:
    """Let the command line say for whom the server is run."""
    parser.add_argument(
        "--user-id",
        default="local",
        help="for whom to make the instance (%(default)s; the key, if any: GUMCP_API_KEY in the environment)",
    )


def find(server_name: str, user_id: str) -> tuple[ServerDefinition, Identity]:
    """Return the server of this name, and the user with the key of the environment.

    Raises:
        CommandError: there is no such server, or it failed to load and why, or nobody can have this user id.
    """
    registry = GatewayConfig.current().registry
    try:
        return registry.get(server_name), Identity(parse_user_id(user_id), conf.api_key)
    except GatewayError as error:
        reasons = [failure.reason for failure in registry.failures if failure.name == server_name]
        names = ", ".join(registry.names) or "none"
        raise CommandError(" ".join([str(error), *reasons, f"Servers: {names}."])) from None


@contextmanager
def containing_server(identity: Identity) -> Iterator[None]:
    """Run a server's own code inside the block, for `identity`, whose key nothing repeats.

    What it prints goes to standard error: standard output is for a result or a protocol. Of what it logs and raises,
    the key is taken out.

    Raises:
        CommandError: the server's code raised anything but KeyboardInterrupt. `--traceback` shows where.
    """
    make_record = logging.getLogRecordFactory()
    install_record_redaction(PathRedactor(GatewayConfig.current().registry.names))
    token = current_identity.set(identity)
    try:
        with stdout_on_stderr():
            yield
    except KeyboardInterrupt:
        raise
    # The server's own code may raise anything.
    except BaseException as error:
        text = "; ".join(_sentence(leaf) for leaf in _leaves(error))
        raise CommandError(redact(text, identity.api_key)) from error
    finally:
        current_identity.reset(token)
        logging.setLogRecordFactory(make_record)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups: the SDK's task groups wrap what failed inside of them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, CommandError) else f"{type(error).__name__}: {error}".rstrip(": ")
