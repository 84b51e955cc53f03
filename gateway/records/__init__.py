"""Rows that operators see: their models, the recorder that writes them, and their admin pages.

A Django app of its own. Imports `transports` and `instances` to read what is alive. No request reads a row.
"""
