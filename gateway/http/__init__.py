"""What all endpoints share of HTTP: ASGI types, requests, responses, refusals, origins, CORS, proxies, addresses.

Imports the ground only.
"""
