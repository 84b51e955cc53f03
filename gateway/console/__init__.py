"""The host as people meet it: pages that help to connect a client, and the doctor that tries what clients do.

May import everything below it: it shows what `records` and `access` have in rows. Not here: the endpoints that clients
call, and the admin pages of rows, which stay with their models.
"""
