"""The commands of `manage.py`, and what they share.

* `commands`: one module for each command. `base`: the class of those that load servers. `command_line` runs them all.
* Running one server without a host: `single_server`, `in_memory_client`, `tool_call`, `tool_arguments`, `answers`,
  `inspection`, `error_display`, `progress`, `client_options`.
* Serving: `workers`, `ports`, `inherited_socket`, `first_operator`, `next_steps`.
* Files that operators keep: `backups`, `embedded`, and `configuration_file` with its export and import.

May import every other package. No package imports this one. Modules that a command needs for `--help` import neither
the MCP SDK nor servers.
"""
