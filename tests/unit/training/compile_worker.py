"""A process that compiles two lines with torch.compile, and ends with what stood in the way."""

from ds_distill.training.compile import why_no_compile

raise SystemExit(why_no_compile())
