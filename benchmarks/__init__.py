"""Benchmarks of training, inference and data preparation; see `python -m benchmarks.NAME --help`."""

import logging

from ds_distill.builds.inductor_cache import keep_cache_in_environment

logging.disable(logging.WARNING)  # libraries log while they are imported, but only the benchmark prints
keep_cache_in_environment()
