"""Plays the handshakes of MCP clients against a running host, over the network, and names what is in their way.

`examination` says what is tried, in which order. `clients` has the handshakes, `checks` what proxies are known to
break, `wire` the HTTP requests, `findings` what comes out. It knows a host only from its answers, so it can examine any
host from any machine.
"""
