"""The DeepSpeed engine and the code that runs it."""
