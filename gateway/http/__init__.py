"""HTTP as all endpoints use it: ASGI types, requests, responses, refusals, origins, CORS, proxies, addresses, body
limits.

Imports the ground only. What is above it may import it.
"""
