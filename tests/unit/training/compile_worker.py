"""A process that compiles two lines with torch.compile, and ends with what stood in the way."""

from ds_distill.training.compile import compile_unavailable_reason

raise SystemExit(compile_unavailable_reason())
