"""Alerts: what operators are told by webhook and e-mail when something is wrong, and when it is well again.

How an alert travels: each process writes what is wrong with it into a row (`watch`, from `troubles`). One process, the
lead, puts these together and begins and ends alerts (`register`), writes messages to the destinations that want to hear
of them (`outbox`), and sends them in threads of their own (`sender`, `delivery`). All of it is away from every request.

Imports `records`, `access`, `upstreams` (for its checked connections), `http` and the ground. Imported by `host`, which
gives it what it sees, and by `console` and `management`.
"""
