"""`python -m tests.evidence NAME [--server daphne]`: prints figures; exit status 1 if the claim does not hold."""

from __future__ import annotations

import argparse
import resource
import sys

from tests.evidence import (
    blocked_lane,
    blocked_user,
    canary,
    computing_users,
    dying_children,
    fifty_clients,
    heavy_messages,
    held_sessions,
    load_sixty,
    lost_processes,
    never_returning,
    reload_under_load,
    wrong_keys,
)

CLAIMS = {
    "fifty_clients": fifty_clients,
    "heavy_messages": heavy_messages,
    "held_sessions": held_sessions,
    "blocked_lane": blocked_lane,
    "canary": canary,
    "computing_users": computing_users,
    "load_sixty": load_sixty,
    "lost_processes": lost_processes,
    "blocked_user": blocked_user,
    "never_returning": never_returning,
    "reload_under_load": reload_under_load,
    "wrong_keys": wrong_keys,
    "dying_children": dying_children,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("claim", choices=[*CLAIMS, "all"])
    parser.add_argument("--server", choices=["daphne", "uvicorn"], help="one ASGI server only; default: both in turn")
    arguments = parser.parse_args()
    # 2 000 sessions are as many descriptors on either side; the hosts inherit the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    does_hold = True
    for name in CLAIMS if arguments.claim == "all" else [arguments.claim]:
        print(f"{name}: {(CLAIMS[name].__doc__ or '').splitlines()[0]}")
        for asgi_server in [arguments.server] if arguments.server else ["daphne", "uvicorn"]:
            holds = CLAIMS[name].run(asgi_server)
            print(f"{asgi_server}: {'holds' if holds else 'DOES NOT HOLD'}\n")
            does_hold &= holds
    return 0 if does_hold else 1


if __name__ == "__main__":
    sys.exit(main())
