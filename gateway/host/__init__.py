"""The running host: makes what lives as long as the process, passes it on, starts and stops it.

Imports all packages below it. `endpoints` gets the host from the site's asgi.py.
"""
