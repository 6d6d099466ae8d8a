"""The tasks that a model is fine-tuned on (GLUE, IMDb, SQuAD), with their files and their scores."""
