"""Fine-tuning on GLUE, SQuAD and IMDb, with or without a teacher, and its results."""
