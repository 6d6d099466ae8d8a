"""The tuning of a masked-LM teacher on several tasks at once: one encoder, and a head for each task."""
