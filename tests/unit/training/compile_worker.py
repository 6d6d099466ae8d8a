"""Compile two lines with torch.compile in a process that ends with the reason why it could not."""

from ds_distill.training.compile import compile_unavailable_reason

raise SystemExit(compile_unavailable_reason())
