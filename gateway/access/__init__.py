"""Who is calling, and what they may do: session keys, API keys, scopes, limits, the audit log.

A Django app of its own. Imports `http` and the ground. Does not import sessions, instances or endpoints: what it needs
of a session is in `owned`.
"""
