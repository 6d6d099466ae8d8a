"""Augmented copies of a task's training texts, which a fine-tuned teacher labels while a student is fine-tuned."""
