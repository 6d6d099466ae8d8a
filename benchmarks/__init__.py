"""Measurements: `python -m benchmarks.NAME --help`."""

import logging

logging.disable(logging.WARNING)  # a benchmark's own lines are its output: the libraries talk while they are imported
