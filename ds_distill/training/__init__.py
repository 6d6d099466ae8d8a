"""The DeepSpeed engine and what runs it."""
