"""The context variables in which the SDK and the host find the caller."""

from contextvars import Context
from hashlib import sha256

from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from gateway.access.identity import Identity, current_identity


def caller_context(server_name: str, identity: Identity) -> Context:
    """A new context for work on behalf of `identity`. The SDK binds sessions and states to the caller in it.

    The principal is a digest: it tells callers apart without containing the user id or the key.
    """
    principal = sha256(repr((server_name, identity.user_id, identity.api_key)).encode()).hexdigest()
    context = Context()
    context.run(current_identity.set, identity)
    context.run(auth_context_var.set, AuthenticatedUser(AccessToken(token="", client_id=principal, scopes=[])))
    return context
