"""The host as people meet it: pages that help to connect a client or to try a server, and the doctor, which does what
clients do.

May import everything below it: it shows what `records` and `access` have in rows. Not here: the endpoints that clients
call, and the admin pages of rows, which stay with their models.
"""
