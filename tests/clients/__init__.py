"""Load what ds-distill writes in its users' own programs. See `python -m tests.clients --help`."""
