"""A canary key in every kind of request, good and bad: no hit in logs from INFO up, metrics, rows, error bodies."""

from __future__ import annotations

from tests.evidence.hosts import fresh_host
from tests.support.canary import BODY_LIMIT, CANARY, provoke
from tests.support.processes import until


def run(asgi_server: str) -> bool:
    limits = {"GUMCP_FACTORY_TIMEOUT_SECONDS": "1", "GUMCP_MAX_BODY_BYTES": str(BODY_LIMIT)}
    with fresh_host(asgi_server, **limits) as host:
        answered = provoke(host)
        until(lambda: not host.rows("SELECT * FROM records_sessionrecord WHERE state = 'open'"))
        sessions = len(host.rows("SELECT * FROM records_sessionrecord"))
        metrics = host.metrics_text()
        host.terminate()  # so that the last lines and rows are looked at as well
        log = host.log()
        rows = b"".join(path.read_bytes() for path in host.data_dir.glob("gumcp.sqlite3*"))
    canary = CANARY.encode()
    hits = {
        "log": log.count(CANARY),
        "metrics": metrics.count(CANARY),
        "rows": rows.count(canary),
        "error bodies": sum(canary in body for body in answered),
    }
    print(
        f"{asgi_server}: {len(answered)} answers to bad requests, {sessions} sessions, "
        f"{len(log.splitlines())} log lines ({log.count('[redacted]')} redactions), "
        f"{len(rows) // 1024} KiB of database; hits: " + ", ".join(f"{place} {count}" for place, count in hits.items())
    )
    return not any(hits.values()) and "[redacted]" in log and sessions > 0
