"""The host as people see it: the pages of the admin, the pages that help to connect a client or to try a server, and
the doctor, which does what clients do.

Imports `host`, `alerts`, `records`, `access` and what is below them: it shows what they have in rows and in memory.
Imported by `endpoints`, `fleet` and `management`. Not here: the endpoints that clients call, and a few admin pages of
rows that stay beside their models (`records.admin`, `access.admin`).
"""
