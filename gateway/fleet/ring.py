"""Consistent hashing: which member owns a key.

The ring is ketama's as nginx computes it for `hash … consistent` (CRC32, 160 points for each member), so that a load
balancer with that line sends every request to its owner at once. Source: nginx, ngx_http_upstream_hash_module.c.
"""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

POINTS_OF_A_MEMBER: Final = 160


class Ring:
    """Members on a circle of 2^32 points. When one leaves, only its keys move."""

    def __init__(self, members: Sequence[str]) -> None:
        """`members` are named as servers are in nginx: `host:port`, or any text without a port."""
        points: dict[int, str] = {}
        for member in members:
            for point in _points(member):
                # nginx keeps the first of members with the same point, in the order of its configuration.
                points.setdefault(point, member)
        self._hashes = sorted(points)
        self._members = [points[point] for point in self._hashes]
        self.members = tuple(members)

    def owner(self, key: bytes) -> str:
        """The member that owns `key`. Raises `IndexError` if there are no members."""
        # Not cached: that would keep callers' keys, and one key can be written in many, long ways.
        position = bisect_left(self._hashes, zlib.crc32(key))
        return self._members[position % len(self._members)]


def _points(member: str) -> list[int]:
    host, colon, port = member.rpartition(":")
    if not colon or not port.isdecimal():
        host, port = member, ""
    base = zlib.crc32(host.encode() + b"\0" + port.encode())
    points, previous = [], b"\0\0\0\0"
    for _ in range(POINTS_OF_A_MEMBER):
        point = zlib.crc32(previous, base)
        points.append(point)
        previous = struct.pack("<I", point)
    return points
