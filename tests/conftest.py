import os
from pathlib import Path

import pytest
from hypothesis import settings

from ds_distill.builds.inductor_cache import keep_cache_in_environment

keep_cache_in_environment()
# A busy machine is slow; and who changes one thing is not told of a rare example of another.
settings.register_profile("quick", deadline=None, derandomize=True, database=None)
settings.register_profile("long", deadline=None)
# A test on every core leaves no second one for its own threads: waiting for it, they would take a third more time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on the network; those of the Hub start a server and unset it
# Triton reads this when torch or transformers first imports it. Without a GPU, its kernels run in its interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.option.markexpr == "long" else "quick")
