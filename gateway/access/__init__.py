"""Who may call: keys, their owners, scopes and limits, and what is written down about them.

`keys` is the format; `grants` what a key allows; `store` the rows; `authenticator` the door; `key_watch` the thread
that keeps memory and rows together; `limits` the rates; `tool_scope` what of it holds inside a server; `audit` the
trail of what operators did. Who is calling is carried on as `gateway.access.identity.Identity`.
"""
