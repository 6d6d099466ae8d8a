"""Distil pretrained encoders into small ones during pretraining, on DeepSpeed."""

import os
import sys

__version__ = "0.1.0"

# torch.compile reads it once: its files in the environment's own folder, where there is one, instead of below /tmp
if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(sys.prefix, "torch_inductor"))
