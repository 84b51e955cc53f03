"""HTTP as all endpoints use it: ASGI types, requests, responses, refusals, origins, CORS, proxies, addresses, limits.

Imports the ground only.
"""
