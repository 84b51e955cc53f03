"""``python -m tests.benchmarks.issue_keys``: make keys in a host's database, and print session keys with them."""

from __future__ import annotations

import json
import os
from typing import Final

USERS: Final = 500


def main() -> None:
    """Issue a key to each of the users of the benchmark."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gumcp_site.settings")
    import django

    django.setup()
    from django.contrib.auth.models import User

    from gateway.access.keys import make_key
    from gateway.access.models import ApiKey

    names = [f"bench-{number}" for number in range(USERS)]
    users = User.objects.bulk_create(User(username=name, password="!") for name in names)
    keys = [make_key() for _ in names]
    ApiKey.objects.bulk_create(
        ApiKey(user=user, public=key.public, digest=key.digest) for user, key in zip(users, keys, strict=True)
    )
    print(json.dumps([f"{name}:{key.text}" for name, key in zip(names, keys, strict=True)]))


if __name__ == "__main__":
    main()
