"""Rows that operators see: their models, the recorder that writes them, and their admin pages.

A Django app of its own. It imports `transports` and `instances` to see what is alive. No request reads a row.
"""
