import os
from pathlib import Path

from ds_distill.builds.inductor_cache import keep_cache_in_environment

keep_cache_in_environment()
# Read when triton is first imported, which torch and transformers do: without a GPU its kernels run in its interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"
