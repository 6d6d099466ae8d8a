"""Fine-tuning on GLUE, SQuAD and IMDb, with or without a teacher, and what comes out of it."""
