"""What a model is fine-tuned on and asked: GLUE, IMDb, SQuAD; their files and their scores."""
