"""Django's SQLite backend, with a database file that only its owner may read.

Django imports `base` for the setting `ENGINE`; nothing of this project imports it, and it imports nothing of the
project. SQLite gives its -wal, -shm and -journal files the mode of the database.
"""
