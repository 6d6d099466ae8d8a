"""Augmented copies of a task's training texts, which a fine-tuned teacher labels while a student is fine-tuned."""

from pathlib import Path

from ds_distill.utils.errors import UserError

FILE = "augmented.jsonl"  # in the folder that is written
CLOZE = "cloze"  # how a row was made that is no copy of an example


def find_rows(folder: Path) -> Path:
    """Return the file of a folder that `augment` has written; raise UserError where there is none."""
    if not (folder / FILE).is_file():
        raise UserError(f"--augmented {folder}: {FILE} is missing; give a folder that `ds-distill augment` has written")
    return folder / FILE
