"""Django's SQLite backend, with a database file that only its owner may read.

Django imports `base` for the setting `ENGINE`. SQLite gives its -wal, -shm and -journal files the mode of the database.
"""
