"""How every part of the host connects to Redis. Imports the client only where a Redis is configured."""

from importlib import import_module
from typing import Any, Final

ANSWER_SECONDS: Final = 1.0
"""How long anything waits for Redis."""


def redis_options(*, is_async: bool = True) -> dict[str, Any]:
    """Options of redis-py, for asyncio or for threads.

    By default it tries ten times: on a stopped Redis a read with a timeout of one second held its caller for 15 s.
    """
    from redis.backoff import NoBackoff

    retry = import_module("redis.asyncio.retry" if is_async else "redis.retry")
    return {
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        "retry": retry.Retry(NoBackoff(), 0),
    }
