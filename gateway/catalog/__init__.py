"""Folders become server definitions: finding, loading, and what is being served.

Imports `compat` and the ground. Imported by `instances` and what is above it. Making a server object for a caller: the
rules are here (`factories`), the objects are held by `instances`.

* Finding: `names`, `discovery`, `registry`, `definitions`, `checks`.
* Loading: `loading`, `load_limits`, `import_effects`, `standard_streams`.
* What a module offers: `styles`, `server_kinds`, `factories`, `calling`, `shared_lifespan`.
"""
