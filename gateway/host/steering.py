"""Carries out what operators ask for in rows: other limits, servers on or off, sessions ended, servers reloaded,
new folders served.

The recorder reads the rows in its own thread. Commands that arrive by the channel layer: `host.control`.
"""

import logging
from datetime import datetime

from gateway.catalog.isolation_choices import isolation_choices, write_isolation_choices
from gateway.host.availability import Availability
from gateway.host.control import ControlListener
from gateway.host.reloading import Reloader
from gateway.host.serving_loop import ServingLoop
from gateway.instances.policies import Policies
from gateway.records.recorder import Recorder

logger = logging.getLogger(__name__)


class Steering:
    """Carries out what operators ask for. Used on the host's loop, except for `wait_for_policies`."""

    def __init__(
        self,
        recorder: Recorder,
        policies: Policies,
        availability: Availability,
        control: ControlListener,
        reloader: Reloader,
        loop: ServingLoop,
    ) -> None:
        self._recorder = recorder
        self._policies = policies
        self._availability = availability
        self._control = control
        self._reloader = reloader
        self._loop = loop
        self._isolation = isolation_choices()
        """The choices with which servers were loaded in this process."""

    def wait_for_policies(self, timeout_seconds: float) -> None:
        """Put the servers' policies in force before the first request. Blocks for at most `timeout_seconds`."""
        self._recorder.has_tried.wait(timeout_seconds)
        policies = self._recorder.operator_requests.take_policies()
        if policies is not None:
            self._policies.replace(policies)

    def carry_out(self) -> None:
        """Carry out what the recorder has read since the last call. Call it regularly."""
        self._control.end_sessions(self._recorder.operator_requests.take_sessions_to_end())
        policies = self._recorder.operator_requests.take_policies()
        if policies is not None:
            for server_name in self._policies.replace(policies):
                logger.info("Server %s was switched off", server_name)
                self._availability.end_disabled(server_name)
        self._availability.end_unavailable_sessions()
        look = self._recorder.operator_requests.take_look_request()
        reloads = self._recorder.operator_requests.take_servers_to_reload() | self._take_isolation()
        if reloads or look is not None:
            self._loop.start_task(self._reload(reloads, look))

    async def _reload(self, server_names: set[str], look: datetime | None) -> None:
        try:
            await self._reloader.update(names=server_names)
        finally:
            if look is not None:
                self._recorder.note_look(look)

    def _take_isolation(self) -> set[str]:
        """Keep operators' choices of processes for the next start. Returns the servers that are to move."""
        wanted = self._policies.isolation
        if wanted is None or wanted == self._isolation:
            return set()
        if wanted != isolation_choices():
            try:
                write_isolation_choices(wanted)
            except OSError as error:
                logger.error("The choice of processes for servers cannot be kept in GUMCP_DATA_DIR: %s", error)
                return set()
        moved = {name for name in wanted | self._isolation if wanted.get(name) != self._isolation.get(name)}
        self._isolation = wanted
        return moved
