"""Folders become server definitions: finding, loading, and what is being served.

Imports `upstreams`, `compat` and the ground. `instances` and what is above it may import it. How a server object is
made for a caller is here (`factories`). The objects are in `instances`.

* Finding: `discovery`, `near_misses`, `names`, `manifests`, `isolation_choices`, `checks`. What was found:
  `definitions`, `registry`.
* Loading: `loading`, `loading_thread`, `load_limits`, `load_errors`; `import_effects` and `standard_streams` keep the
  process as it was; `environment` gives a server its own variables; `server_modules`, `server_finder` and
  `importlib_view` keep the modules of servers apart.
* What a module offers: `styles`, `server_kinds`, `factories`, `calling`, `shared_lifespan`.
"""
