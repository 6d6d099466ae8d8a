"""Export of trained weights to a Hugging Face folder, which is verified before it is published."""
