"""Several processes that serve as one host: workers under a supervisor, and who of them owns which caller.

* `ring`: the owner of a key among members. `owner_keys`: the key of a request.
* `supervisor`: the parent process: the listening socket, workers, restarts, rolling reloads. `messages`: what it and a
  worker tell each other.
* `worker`: a worker's side of that. `relay`: requests that belong to another process are passed on to it.
* `merged_metrics`: one set of metrics from those of all workers.

Imports `endpoints` and everything below it. Only `management` imports it: a host that is one process has nothing of it.
"""
