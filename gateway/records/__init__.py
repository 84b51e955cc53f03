"""Rows that operators see: their models, the recorder that writes them, and their admin pages.

A Django app of its own. Imports `transports`, `instances`, `catalog` and `access`, to see what is alive, and the
ground. Imported by `alerts`, `host`, `console`, `endpoints`, `fleet` and `management`. No request reads a row.
"""
