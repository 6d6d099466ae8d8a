"""Measurements: `python -m benchmarks.NAME --help`."""

import logging

from ds_distill.builds.inductor_cache import keep_cache_in_environment

logging.disable(logging.WARNING)  # a benchmark's own lines are its output: the libraries talk while they are imported
keep_cache_in_environment()
