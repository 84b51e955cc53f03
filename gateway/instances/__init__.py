"""Server objects that are alive: one for each (server, identity), in the lane of its server.

Imports `catalog`, `compat` and `access`. How messages reach an instance is the business of `transports`.
"""
