"""Users of the admin and their browsers, as Django's test client."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client


def browser(user: User, **options: Any) -> Client:
    """The browser of `user`, who is logged in. `options` are those of Django's test client."""
    client = Client(**options)
    client.force_login(user)
    return client


def make_operator(name: str, *permissions: str, is_staff: bool = True, **fields: Any) -> User:
    """Make a user who may enter the admin and has the permissions with these codenames."""
    user = User.objects.create_user(name, is_staff=is_staff, **fields)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user
