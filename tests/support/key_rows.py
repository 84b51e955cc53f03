"""A store of keys in memory, which tests control. It stands where the database's rows stand."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from gateway.access.grants import KeyFacts
from gateway.access.keys import NewKey, make_key


class Rows:
    """Keys as rows: counts who asks, and may fail or block."""

    def __init__(self) -> None:
        self.facts: dict[str, KeyFacts] = {}
        self.look_ups = 0
        self.reads = 0
        self.uses: dict[int, float] = {}
        self.failure: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def issue(self, user_id: str, **facts: Any) -> NewKey:
        key = make_key()
        common = {"servers": None, "expires_at": None, "is_active": True, **facts}
        self.facts[key.public] = KeyFacts(len(self.facts) + 1, key.public, key.digest, user_id, **common)
        return key

    def change(self, key: NewKey, **facts: Any) -> None:
        self.facts[key.public] = replace(self.facts[key.public], **facts)

    def look_up(self, public: str) -> KeyFacts | None:
        self.look_ups += 1
        assert self.may_answer.wait(10)
        if self.failure is not None:
            raise self.failure
        return self.facts.get(public)

    def read(self, key_ids: Any) -> dict[int, KeyFacts]:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        wanted = set(key_ids)
        return {facts.key_id: facts for facts in self.facts.values() if facts.key_id in wanted}

    def write_uses(self, last_used: dict[int, float]) -> None:
        self.uses.update(last_used)

    def renew(self) -> None:
        pass

    def disconnect(self) -> None:
        pass
