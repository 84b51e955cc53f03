"""Which process of pytest-xdist runs which tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.scheduling import GroupScheduling


class Worker:
    """A process of pytest-xdist: keeps what it is told to run."""

    def __init__(self) -> None:
        self.gateway = SimpleNamespace(id="gw")
        self.shutting_down = False
        self.to_run: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.to_run += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_tests_of_a_group_run_in_one_process_and_all_others_anywhere(tmp_path: Path) -> None:
    names = ["shared 1", "alone 1", "shared 2", "alone 2", "shared 3", "alone 3", "shared 4", "alone 4"]
    groups = tmp_path / "groups"
    groups.write_text(json.dumps({name: "a host" for name in names if name.startswith("shared")}))
    option = SimpleNamespace()
    config: Any = SimpleNamespace(option=option, getvalue={"tx": ["2*popen"]}.__getitem__)
    scheduling = GroupScheduling(config, None, groups)
    workers: list[Any] = [Worker(), Worker()]
    for worker in workers:
        scheduling.add_node(worker)
    for worker in workers:
        scheduling.add_node_collection(worker, names)
    scheduling.schedule()
    ran: list[list[str]] = [[], []]
    while not scheduling.tests_finished or any(worker.to_run for worker in workers):
        for worker, its in zip(workers, ran, strict=True):
            if worker.to_run:
                index = worker.to_run.pop(0)
                its.append(names[index])
                scheduling.mark_test_complete(worker, index)
    assert ran[0][:4] == ["shared 1", "shared 2", "shared 3", "shared 4"]
    assert sorted(ran[0][4:] + ran[1]) == ["alone 1", "alone 2", "alone 3", "alone 4"]
    assert ran[1]
