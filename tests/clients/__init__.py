"""What ds-distill writes, loaded in the programs that its users load it into. See `python -m tests.clients --help`."""
