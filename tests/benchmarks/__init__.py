"""Benchmarks of the host beside the SDK's own transports. Run by hand: ``make bench``."""
