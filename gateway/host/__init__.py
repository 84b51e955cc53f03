"""The running host: makes what lives as long as the process, passes it on, starts and stops it.

* `host`: all that there is, and in which order it starts and stops. `state`, `troubles`, `lane_watch`: whether it is
  well.
* What operators want: `control` and `steering` carry it out, `reloading` loads code again, `availability` says which
  servers may be used.
* `drain`: the end of the process. `server_log`, `json_log`, `metrics_port`: what it tells.

Imports all packages below it. Imported by `apps`, `console`, `endpoints` and `management`.
"""
