"""Folders become server definitions: finding, loading, and what is being served.

Imports `compat` and the ground. Imported by `instances` and what is above it. Making a server object for a caller: the
rules are here (`factories`), the objects are held by `instances`.

* Finding: `discovery`, `near_misses`, `names`, `manifests`, `checks`. What was found: `definitions`, `registry`.
* Loading: `loading`, `loading_thread`, `load_limits`, `load_errors`; `import_effects` and `standard_streams` keep the
  process as it was; `server_modules`, `server_finder` and `importlib_view` keep the modules of servers apart.
* What a module offers: `styles`, `server_kinds`, `factories`, `calling`, `shared_lifespan`.
"""
