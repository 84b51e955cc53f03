"""Where requests arrive: the ASGI application, its routing, the MCP endpoints, health, and Django's pages.

Imports everything below it. Only `management` and the site import it.
"""
