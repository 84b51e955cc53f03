"""Sessions and how their messages travel between a client and a running server.

Imports `instances`, `access`, `http` and the ground. Which request goes to which transport is the business of
`endpoints`.
"""
