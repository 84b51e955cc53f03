"""Folders become server definitions: finding, loading, and what is being served.

Imports `compat` and the ground. Making a server object for a caller is the business of `instances`.
"""
