"""Claims about a whole host that take longer than a test may: run by hand, `python -m tests.evidence NAME`."""
