"""Augmented copies of a task's training texts, which a fine-tuned teacher labels while a student is fine-tuned."""

FILE = "augmented.jsonl"  # in the folder that is written
CLOZE = "cloze"  # how a row was made that is no copy of an example
