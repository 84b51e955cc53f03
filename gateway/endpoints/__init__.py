"""Where requests arrive: the ASGI application, its routing, the MCP endpoints, health, and Django's pages.

Imports everything below it. Only the site (`gumcp_site`) imports it; `fleet` and `management` may.
"""
