"""One server that is run from the shell for one user, without a host: `call`, `inspect` and `run_stdio`.

Lives here: loading that server and no other, and what becomes of what its code prints, logs and raises. The author of
the server is at the keyboard, so errors are shown whole; only the key is taken out. Not here: how an error looks
(`error_display`), and what is done with the server (the commands).
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from mcp.shared.exceptions import MCPError

from gateway.access.identity import Identity, current_identity, parse_user_id
from gateway.access.redaction import redact
from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.discovery import load_server
from gateway.catalog.standard_streams import stdout_on_stderr
from gateway.collector import look_seldom_for_garbage
from gateway.conf import conf
from gateway.exceptions import GatewayError, InstanceUnavailable
from gateway.management.error_display import AuthorHandler, describe_error, fold_traceback, leaves


def find(server_name: str, user_id: str, *, shows_whole_tracebacks: bool) -> tuple[ServerDefinition, Identity]:
    """Load the server of this name, and return it with the user and the key of the environment.

    Raises:
        CommandError: there is no such server, or it failed to load and why, or nobody can have this user id.
    """
    try:
        identity = Identity(parse_user_id(user_id), conf.api_key)
        outcome = load_server(server_name, conf.server_places, conf.load_timeout_seconds)
    except GatewayError as error:
        raise CommandError(str(error)) from None
    if isinstance(outcome, LoadFailure):
        where = outcome.traceback if shows_whole_tracebacks else fold_traceback(outcome.traceback)
        text = f"{outcome.name} did not load. {outcome.reason}" + (f"\n\n{where}" if outcome.traceback else "")
        raise CommandError(redact(text, identity.api_key))
    return outcome, identity


class OneServer:
    """A server's code while a command runs it: what it raises is noted, and its key is in nothing that is printed."""

    def __init__(self, identity: Identity, *, shows_whole_tracebacks: bool) -> None:
        self._identity = identity
        self._shows_whole_tracebacks = shows_whole_tracebacks
        self._failures: list[BaseException] = []
        self.on_failure: Callable[[str], object] | None = None
        """Called with the text of each failure when it happens. Otherwise `take_failures` has them."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server's own code inside the block.

        What it prints goes to standard error: standard output is for a result or a protocol.

        Raises:
            CommandError: the server's code raised anything but KeyboardInterrupt, or answered with a protocol error.
        """
        token = current_identity.set(self._identity)
        look_seldom_for_garbage()
        try:
            log = AuthorHandler(self.clean, is_whole=self._shows_whole_tracebacks, on_failure=self.note)
            with stdout_on_stderr(), log.in_use():
                yield
        except KeyboardInterrupt:
            raise
        # The server's own code may raise anything.
        except BaseException as error:
            for leaf in leaves(error):
                if isinstance(leaf, CommandError):
                    raise leaf from None
                if isinstance(leaf, MCPError):
                    raise CommandError("\n\n".join([self.clean(str(leaf)), *self.take_failures()])) from error
                if isinstance(leaf, InstanceUnavailable):
                    # A command or a URL that cannot be used. No author's code has raised it.
                    raise CommandError(self.clean(str(leaf))) from error
            raise CommandError(self.describe(error)) from error
        finally:
            current_identity.reset(token)

    def note(self, error: BaseException) -> None:
        """Keep or report an error of the server's code, once."""
        if any(error is known for known in self._failures):
            return
        self._failures.append(error)
        if self.on_failure is not None:
            self.on_failure(self.describe(error))

    def take_failures(self) -> list[str]:
        """Return the text of every error noted since the last time."""
        texts = [self.describe(error) for error in self._failures]
        self._failures.clear()
        return texts

    def describe(self, error: BaseException) -> str:
        """Return the text of an error and where it was raised, without the key."""
        whole = self._shows_whole_tracebacks
        return self.clean("".join(traceback.format_exception(error)) if whole else describe_error(error))

    def clean(self, text: str) -> str:
        """Return a text without the key."""
        return redact(text, self._identity.api_key)
