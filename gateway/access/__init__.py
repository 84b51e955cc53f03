"""Who is calling, and what they may do: session keys, API keys, scopes, limits, the audit log.

A Django app of its own. Imports `http` and the ground. It does not import sessions, instances or endpoints: what it
needs to know about a session is in `owned`. What is above it may import it.
"""
