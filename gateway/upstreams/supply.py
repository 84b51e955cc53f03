"""Links to one server's other side: who shares which, when they are started, and what happens when one fails.

A `Supply` belongs to a manifest as it was loaded; a changed manifest gets a new one, with no memory of failures. A
`Holder` is one key's link: it is started on first use, started again after a crash with the next use, and stopped when
nobody uses it. Everything here runs in the server's lane; `condition` and `stderr` may be read in any thread.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from mcp.client._transport import TransportStreams
from mcp.shared.exceptions import MCPError

from gateway.conf import conf
from gateway.exceptions import InstanceUnavailable
from gateway.printable import Lines
from gateway.upstreams.child import Child, StderrLines
from gateway.upstreams.link import Link, LinkClosed
from gateway.upstreams.link_state import LinkState
from gateway.upstreams.manifest import CommandSource, Manifest
from gateway.upstreams.placeholders import Caller
from gateway.upstreams.questions import Questions
from gateway.upstreams.remote import LastFault, open_remote
from gateway.upstreams.secrecy import secrets_of, without_secrets
from gateway.upstreams.slots import Slots

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS: Final = 1.0
LONGEST_DELAY_SECONDS: Final = 60.0
JITTER: Final = 0.1
"""How much longer than its base a delay may be: callers of one broken server do not come back all at once."""

MAX_REMEMBERED_FAILURES: Final = 10_000

SHOWN_LINES: Final = 5
"""How many lines of standard error a failed start shows in the log."""

CANNOT_START: Final = 127
"""The launcher's exit status where the command cannot be executed."""

Key = tuple[str, str | None, object] | None
"""Who shares a link: (user id, key, connection or None), or None for everybody."""


class BackOff:
    """How long to wait after starts that failed: 1 s, doubled each time up to 60 s."""

    def __init__(self) -> None:
        self._failures = 0
        self._next = 0.0
        self.reason = ""

    def require_ready(self) -> None:
        """Check that a start may be tried now.

        Raises:
            InstanceUnavailable: not yet. The message says why and when.
        """
        seconds = self._next - time.monotonic()
        if seconds > 0:
            raise InstanceUnavailable(f"{self.reason} The next start is tried in {seconds:.0f} s.")

    def note_failure(self, reason: str) -> None:
        """Note that a start failed."""
        delay = min(FIRST_DELAY_SECONDS * 2**self._failures, LONGEST_DELAY_SECONDS)
        self._failures = min(self._failures + 1, 10)
        self._next = time.monotonic() + delay * (1 + random.random() * JITTER)
        self.reason = reason

    def note_success(self) -> None:
        """Note that a start worked."""
        self._failures, self._next, self.reason = 0, 0.0, ""


class Supply:
    """The links of one server."""

    def __init__(self, server_name: str, manifest: Manifest, slots: Slots) -> None:
        self.server_name = server_name
        self.manifest: Manifest = manifest
        self.slots = slots
        self.stderr = StderrLines(server_name)
        self._holders: dict[Key, Holder] = {}
        self._back_offs: OrderedDict[Key, BackOff] = OrderedDict()
        self._warning = manifest.source.why_not_found() if isinstance(manifest.source, CommandSource) else ""

    def hold(self, caller: Caller, connection: object = None) -> "Holder":
        """The link of one caller, for one more user. Release it with `Holder.release`."""
        per = self.manifest.per
        key: Key = None if per == "shared" else (caller.user_id, caller.api_key, connection)
        holder = self._holders.get(key)
        if holder is None:
            shown_to = Caller("shared", None) if per == "shared" else caller
            holder = self._holders[key] = Holder(self, key, shown_to)
        holder.users += 1
        return holder

    def forget(self, holder: "Holder") -> None:
        """Forget a holder that nobody uses."""
        if self._holders.get(holder.key) is holder:
            del self._holders[holder.key]

    def back_off(self, key: Key) -> BackOff:
        """The memory of one key's failures."""
        back_off = self._back_offs.get(key)
        if back_off is None:
            back_off = self._back_offs[key] = BackOff()
            if len(self._back_offs) > MAX_REMEMBERED_FAILURES:
                self._back_offs.popitem(last=False)
        return back_off

    @property
    def kind(self) -> str:
        """What operators are told the server is."""
        return self.manifest.source.kind

    @property
    def summary(self) -> str:
        """Its command line or URL, with placeholders in place of values."""
        return self.manifest.source.summary

    def warning(self) -> str:
        """Why a start would fail, as far as is known without one: a part of a sentence, empty if nothing. Any thread.

        A command that was not found is looked for again each time.
        """
        source = self.manifest.source
        if self._warning and isinstance(source, CommandSource):
            self._warning = source.why_not_found()
        return self._warning

    def states(self) -> list[LinkState]:
        """The links of this process, for operators. Any thread."""
        return [holder.state for holder in list(self._holders.values())]

    def condition(self) -> str:
        """What operators are told: how many links are open and what failed last."""
        holders = list(self._holders.values())
        running = sum(holder.is_open for holder in holders)
        noun = "child processes" if isinstance(self.manifest.source, CommandSource) else "connections"
        failed = [back_off.reason for back_off in list(self._back_offs.values()) if back_off.reason]
        return f"{running} {noun}" + (f"; last failure: {failed[-1]}" if failed else "")


class Holder:
    """One key's link to the other side."""

    def __init__(self, supply: Supply, key: Key, caller: Caller) -> None:
        self._supply = supply
        self.key = key
        self._caller = caller
        self.users = 0
        self.questions = Questions()
        self.questions.on_unsubscribed = self._unsubscribe
        self.questions.on_left = self.note_idle
        self._link: Link | None = None
        self._starting: asyncio.Task[Link] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._starts = 0
        self._started_at: float | None = None
        self._pid: int | None = None
        self._exit_status: int | None = None
        self._fault = LastFault()
        self._log_level: str | None = None
        self.ending = ""
        """Why the last link ended, for those whose calls it had."""

    @property
    def is_open(self) -> bool:
        """Whether the other side is connected now."""
        return self._link is not None and self._link.is_open

    @property
    def state(self) -> LinkState:
        """What operators see of it. Any thread."""
        pid = self._pid if self.is_open else None
        return LinkState(self._caller.user_id, self.is_open, pid, self._starts, self._started_at, self.ending)

    @property
    def server(self) -> dict[str, Any]:
        """What the other side said of itself when it was last started."""
        return self._link.server if self._link is not None else {}

    @property
    def fault(self) -> LastFault:
        """What a remote server's last bad response was."""
        return self._fault

    async def link(self) -> Link:
        """The link, started if need be. Users that come at once share one start.

        Raises:
            InstanceUnavailable: it cannot be started, or not yet again. The message is fit for callers.
        """
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._link is not None and self._link.is_open and not self._fault.has_lost_session:
            return self._link
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Link:
        supply = self._supply
        back_off = supply.back_off(self.key)
        back_off.require_ready()
        await self._end_link()
        supply.slots.take(self._caller.user_id)
        link = Link(self.questions)
        self._fault = LastFault()
        self._exit_status = None
        try:
            seconds = supply.manifest.start_timeout_seconds or conf.child_start_timeout_seconds
            async with asyncio.timeout(seconds):
                await link.open(self._open_streams)
        except BaseException as error:
            await link.close()
            supply.slots.give_back(self._caller.user_id)
            if isinstance(error, asyncio.CancelledError):
                raise
            reason = self._reason(link, error)
            back_off.note_failure(reason)
            self._log_failure(reason, link.failure)
            raise InstanceUnavailable(reason) from None
        back_off.note_success()
        self._starts += 1
        self._started_at = time.time()
        self._link = link
        self._watching = asyncio.create_task(self._watch(link))
        if self._starts > 1:
            await self._catch_up(link)
        return link

    async def _catch_up(self, link: Link) -> None:
        """Bring a new other side to where the old one was, and tell clients that its lists may differ."""
        for uri in self.questions.subscribed:
            with contextlib.suppress(MCPError):
                await link.request("resources/subscribe", {"uri": uri})
        if self._log_level is not None:
            with contextlib.suppress(MCPError):
                await link.request("logging/setLevel", {"level": self._log_level})
        offered = link.server.get("capabilities") or {}
        for kind in ("tools", "prompts", "resources"):
            if isinstance(offered, dict) and kind in offered:
                await self.questions.announce(f"notifications/{kind}/list_changed")

    def note_log_level(self, level: object) -> None:
        """Remember the log level that a client asked for."""
        if isinstance(level, str):
            self._log_level = level

    @asynccontextmanager
    async def _open_streams(self) -> AsyncGenerator[TransportStreams]:
        source = self._supply.manifest.source
        if not isinstance(source, CommandSource):
            async with open_remote(source, self._caller, self._fault) as streams:
                yield streams
            return
        secret = None
        if source.is_folder:
            secret = json.dumps({"user_id": self._caller.user_id, "api_key": self._caller.api_key})
        secrets = secrets_of(source.values, source.args, self._caller)
        child = await Child.start(
            source, self._caller, partial(self._supply.stderr.add, secrets=secrets), secret=secret
        )
        try:
            yield child.reader, child.writer
        finally:
            self._exit_status = await child.stop()

    async def _watch(self, link: Link) -> None:
        """Notice that the other side has gone."""
        await link.closed.wait()
        if self._link is link:
            status = "" if self._exit_status is None else f" (exit status {self._exit_status})"
            noun = "process" if isinstance(self._supply.manifest.source, CommandSource) else "connection"
            self.ending = f"The server's {noun} ended{status}."
            lines = self._supply.stderr.last(1)
            logger.warning(
                "Server %s: a child process or connection ended%s. It is started again with the next use.%s",
                self._supply.server_name,
                status,
                f" It said: {lines[0]}" if lines else "",
            )
            self._link = None
            self.questions.drop_parked()
            await link.close()
            self._supply.slots.give_back(self._caller.user_id)

    async def _end_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self.questions.drop_parked()
            await link.close()
            self._supply.slots.give_back(self._caller.user_id)

    def _reason(self, link: Link, error: BaseException) -> str:
        """Why a start failed, for callers and operators."""
        if isinstance(error, InstanceUnavailable):
            return str(error)
        if isinstance(self._supply.manifest.source, CommandSource):
            if isinstance(error, TimeoutError):
                return "The server's command did not answer in time."
            if isinstance(link.failure, InstanceUnavailable):
                return str(link.failure)
            if isinstance(link.failure, OSError):
                return f"The server's command cannot be started: {link.failure.strerror}."
            if self._exit_status == CANNOT_START:
                return "The server's command cannot be started."
            if isinstance(error, LinkClosed):
                return f"The server's command ended before it answered (exit status {self._exit_status})."
        elif (sentence := self._fault.sentence()) is not None:
            return sentence
        elif isinstance(error, TimeoutError):
            return "The remote server did not answer in time."
        elif isinstance(error, LinkClosed):
            return "The remote server cannot be reached."
        if isinstance(error, MCPError):
            return "The server refused the handshake."
        return "The server could not be started."

    def _log_failure(self, reason: str, failure: BaseException | None) -> None:
        name, source = self._supply.server_name, self._supply.manifest.source
        if isinstance(source, CommandSource):
            lines = self._supply.stderr.last(SHOWN_LINES)
            said = Lines("".join(["\nIts last lines:", *(f"\n  {line}" for line in lines)] if lines else []))
            logger.error("Server %s: %s%s", name, reason, said)
        else:
            cause = "" if failure is None else f" ({_first_of(failure)!r})"
            secrets = secrets_of(source.values, [source.url], self._caller)
            logger.error("Server %s: %s%s", name, reason, without_secrets(cause, secrets))

    async def _unsubscribe(self, uri: str) -> None:
        if self._link is not None and self._link.is_open:
            with contextlib.suppress(MCPError):
                await self._link.request("resources/unsubscribe", {"uri": uri})

    def note_idle(self) -> None:
        """Begin to count the idle time, if nobody uses the link now."""
        seconds = self._supply.manifest.idle_seconds
        if seconds is not None and self._link is not None and self.questions.is_idle and self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(seconds, self._stop_idle)

    def _stop_idle(self) -> None:
        self._idle_timer = None
        if self.questions.is_idle and self._link is not None:
            logger.info("Server %s: its child process or connection was idle and is stopped", self._supply.server_name)
            self._stopping = asyncio.create_task(self._end_link())

    async def release(self, linger_seconds: float = 0.0) -> None:
        """Let go of the link. It is stopped with its last user, or a while later if nobody else holds it by then."""
        self.users -= 1
        if self.users:
            return
        if linger_seconds:
            asyncio.get_running_loop().call_later(linger_seconds, self._end_lingering)
        else:
            await self._end()

    def _end_lingering(self) -> None:
        if not self.users:
            self._stopping = asyncio.create_task(self._end())

    async def _end(self) -> None:
        self._supply.forget(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self._end_link()


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
