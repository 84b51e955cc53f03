"""Several processes that serve as one host: workers under a supervisor, on one machine or several.

* `ring`: the owner of a key among members. `owner_keys`: the key of a request. `ownership`: the process that owns it.
* `supervisor`: the parent process: the listening socket, workers, restarts, rolling reloads. `messages`: what it and a
  worker tell each other. `worker`: a worker's side of that.
* `relay`: requests that belong to another process are passed on to it.
* `members`: the machines that there are. `signatures`: what proves that a request comes from one of them.
  `moved_sessions`: what happens to streams when one joins.
* `merged_metrics`: one set of metrics from those of all workers.

May import `endpoints` and what is below it. Only `management` imports it: a host that is one process does not use it.
"""
