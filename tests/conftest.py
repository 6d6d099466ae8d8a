import os
from pathlib import Path

from hypothesis import settings

from ds_distill.builds.inductor_cache import keep_cache_in_environment

keep_cache_in_environment()
settings.register_profile("no_deadline", deadline=None)  # a busy machine is slow
settings.load_profile("no_deadline")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on the network; those of the Hub start a server and unset it
# Triton reads this when torch or transformers first imports it. Without a GPU, its kernels run in its interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"
