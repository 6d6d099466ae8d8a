"""Trained weights → a Hugging Face folder, verified before it is published."""
