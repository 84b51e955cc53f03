"""Sessions and instances in memory and the recorder that mirrors them, without its thread."""

from typing import Any

from django.utils import timezone

from gateway.access.identity import Identity
from gateway.apps import GatewayConfig
from gateway.catalog.registry import Registry
from gateway.instances.instance import Instance
from gateway.instances.listings import Listing, Listings
from gateway.records import models
from gateway.records.models import HostProcess
from gateway.records.recorder import Recorder
from gateway.transports.sessions import Session, Sessions


class Mirror:
    """Sessions and instances in memory, and their recorder."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.sessions = Sessions()
        self.instances: list[Instance] = []
        self.listings = Listings()
        # Not started: it writes when it is told to.
        served = registry or GatewayConfig.current().registry
        self.recorder = Recorder(served, self.sessions, self.instances, self.listings)

    def open(self, user_id: str = "ada", *, is_established: bool = True) -> Session:
        session = Session("workshop", Identity(user_id, "canary-key"), "sse", "127.0.0.1")
        session.is_established = is_established
        self.sessions.add(session)
        return session

    def add_instance(self, user_id: str = "ada") -> Instance:
        not_running: Any = None
        instance = Instance("workshop", Identity(user_id, "canary-key"), not_running)
        self.instances.append(instance)
        return instance

    def close(self, session: Session) -> None:
        self.sessions.remove(session)
        self.recorder._on_session_closed(session)

    def learn(self, server_name: str, listing: Listing) -> None:
        self.listings.learn(server_name, listing)
        self.recorder._on_listing_learned(server_name, listing)

    def flush(self) -> None:
        self.recorder._flush(is_last=False)


def row(session: Session) -> models.SessionRecord:
    return models.SessionRecord.objects.get(id=session.row_id)


def instance_row(instance: Instance) -> models.InstanceRecord:
    return models.InstanceRecord.objects.get(id=instance.row_id)


def lost_process(**facts: Any) -> HostProcess:
    now = timezone.now()
    facts = {"hostname": "elsewhere", "pid": 1, "started_at": now, "last_seen_at": now, **facts}
    return HostProcess.objects.create(**facts)


def open_row(process: HostProcess, **facts: Any) -> models.SessionRecord:
    now = timezone.now()
    times = {"opened_at": now, "last_activity_at": now}
    return models.SessionRecord.objects.create(
        **{"process": process, "server_name": "workshop", "user_id": "x", "state": "open", **times, **facts}
    )
